"""A DATASET reads back what was written, names its damage, and its batches can be resumed exactly."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from data_pipelines import toy_drums as pipeline
from melodjinn_jax.config import CodecConfig, DataConfig
from melodjinn_jax.data import prepare
from melodjinn_jax.data import writer as writer_module
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, to_float32
from melodjinn_jax.data.dataset import Dataset, open_dataset
from melodjinn_jax.data.loader import HostShare, training_iterator
from melodjinn_jax.data.records import FIELDS, Record, serialize, shard_index
from melodjinn_jax.data.toy_drums import make_clips, render
from melodjinn_jax.data.writer import write_dataset
from melodjinn_jax.errors import UserError

DATA = DataConfig(train_clips=10, heldout_clips=2, clip_frames=20, hits_per_second=12)  # none of these clips is silent


class EnergyCodec:
    """Stands for a codec: the code of a frame is its level, on a scale fixed by the fit."""

    sample_rate, hop_length, num_codebooks, codebook_size, digest = SAMPLE_RATE, HOP_LENGTH, 2, 256, "energy"

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        level = np.abs(waveform.reshape(len(waveform), -1, HOP_LENGTH)).max(axis=-1)
        return np.stack([level * 255, level * 99], axis=-1).astype(np.int32)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "codec.json").write_text("{}")


def fit_stub(waveforms, config, progress):
    assert waveforms.dtype == np.float32
    return EnergyCodec()


@pytest.fixture(autouse=True)
def _stub_codec(monkeypatch):
    monkeypatch.setattr(prepare.codecs, "fit_codec", fit_stub, raising=False)


def prepare_at(path: Path, data: DataConfig = DATA, codec: CodecConfig | None = None) -> Dataset:
    return prepare.prepare_toy_drums(data, codec or CodecConfig(), path, progress=lambda line: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Dataset:
    """One DATASET for the tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare.codecs, "fit_codec", fit_stub, raising=False)
        return prepare_at(tmp_path_factory.mktemp("world") / "dataset")


def test_records_are_the_clips_and_their_codes(world):
    drums = prepare.load_one_shots(world)
    for split, count in (("train", 10), ("validation", 2), ("test", 2)):
        clips = make_clips(DATA, drums, split)
        loaded = world.load_split(split)
        assert loaded["waveform"].shape == (count, 20, HOP_LENGTH)
        assert loaded["waveform"].dtype == np.int16
        assert loaded["codes"].dtype == np.uint16
        assert sorted(loaded["id"]) == [f"{split}-{index:06d}" for index in range(count)]
        sound = to_float32(loaded["waveform"]).reshape(count, -1)
        np.testing.assert_array_equal(loaded["codes"], EnergyCodec().encode(sound))
        for name, waveform, truth in zip(loaded["id"], sound, loaded["ground_truth"], strict=True):
            hits = prepare.hits_of(truth)
            assert hits == clips[int(name[-6:])].hits
            np.testing.assert_allclose(waveform, render(hits, drums, 20 * HOP_LENGTH), atol=0.51 / 32768)
    assert len(world.load_split("train", limit=3)["id"]) == 3
    with pytest.raises(UserError, match="no split named trian"):
        world.source("trian")


def test_tfds_opens_it_without_tensorflow(world):
    script = (
        "import sys, numpy as np, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(world.path)!r}).as_data_source()\n"
        "assert {name: len(split) for name, split in source.items()} == {'train': 10, 'validation': 2, 'test': 2}\n"
        "assert len(np.frombuffer(source['test'][1]['waveform'], '<i2')) == 20 * 320\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    theirs = tfds.builder_from_directory(world.path).as_data_source("train")
    ours = world.source("train")
    for index in range(10):
        np.testing.assert_array_equal(np.frombuffer(theirs[index]["codes"], "<u2"), ours[index]["codes"].ravel())
        assert theirs[index]["id"].decode() == ours[index]["id"]


def test_the_same_settings_write_the_same_bytes(world, tmp_path):
    again = prepare_at(tmp_path / "again")
    assert again.info == world.info
    assert again.path.stat().st_mode & 0o777 == tmp_path.joinpath("again", "codec").stat().st_mode & 0o777


def test_prepared_again_it_is_opened_or_refused(world, monkeypatch):
    monkeypatch.setattr(prepare.codecs, "fit_codec", None, raising=False)
    assert prepare_at(world.path) == world
    assert prepare_at(world.path, dataclasses.replace(DATA, loop_frames=99, path="x")) == world
    with pytest.raises(UserError, match=r"data\.num_drums \(3 there, 2 asked for\)"):
        prepare_at(world.path, dataclasses.replace(DATA, num_drums=2))
    with pytest.raises(UserError, match=r"codec\.steps"):
        prepare_at(world.path, codec=CodecConfig(steps=1))


def test_recordings_count_by_their_content(tmp_path):
    (tmp_path / "kit").mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3000))
    soundfile.write(tmp_path / "kit" / "hat.wav", noise[0], 24000)
    data = dataclasses.replace(DATA, one_shots=str(tmp_path / "kit"))
    dataset = prepare_at(tmp_path / "dataset", data)
    assert prepare.load_one_shots(dataset).names == ("hat",)
    (tmp_path / "kit").rename(tmp_path / "moved")
    moved = dataclasses.replace(data, one_shots=str(tmp_path / "moved"))
    assert prepare_at(tmp_path / "dataset", moved) == dataset
    soundfile.write(tmp_path / "moved" / "hat.wav", noise[1], 24000)
    with pytest.raises(UserError, match=r"one_shots\.hat\.wav"):
        prepare_at(tmp_path / "dataset", moved)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(EnergyCodec, "encode", lambda self, waveform: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_at(tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_processes_takes_what_the_first_made(tmp_path, monkeypatch):
    first = prepare_at(tmp_path / "first")
    rename = writer_module.os.rename

    def overtaken(source, target):
        rename(first.path, target)
        rename(source, target)

    monkeypatch.setattr(writer_module.os, "rename", overtaken)
    assert prepare_at(tmp_path / "dataset").info == first.info
    assert [file.name for file in tmp_path.iterdir()] == ["dataset"]


def test_a_place_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is not a DATASET"):
        prepare_at(tmp_path / "file")
    with pytest.raises(UserError, match=r"file/dataset.* cannot be written"):
        prepare_at(tmp_path / "file" / "dataset")
    (tmp_path / "empty").mkdir()
    assert prepare_at(tmp_path / "empty").info.records["train"] == 10


@pytest.fixture
def copy(world, tmp_path) -> Path:
    """A DATASET to damage."""
    return Path(shutil.copytree(world.path, tmp_path / "copy"))


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.99])
def test_verify_names_the_file_with_a_flipped_byte(copy, fraction):
    for name, entry in open_dataset(copy).info.files.items():
        flip(copy / name, int(fraction * entry["bytes"]))
        with pytest.raises(UserError, match=name):
            open_dataset(copy).verify()
        flip(copy / name, int(fraction * entry["bytes"]))
    open_dataset(copy).verify()


def test_a_damaged_record_is_never_read_silently(copy, world):
    reference = world.source("test")
    file = next(copy.glob("*test*"))
    refused = 0
    for position in range(100, file.stat().st_size, file.stat().st_size // 9):
        flip(file, position)
        for index, record in enumerate(reference):
            try:
                np.testing.assert_array_equal(open_dataset(copy).source("test")[index]["waveform"], record["waveform"])
            except UserError as error:
                refused += "test" in str(error)
        flip(file, position)
    assert refused


def test_damaged_one_shots_are_refused(copy):
    flip(copy / "one_shots.npz", 20)
    with pytest.raises(UserError, match=r"one_shots\.npz"):
        prepare.load_one_shots(open_dataset(copy))


def test_an_incomplete_dataset_is_refused(copy):
    with pytest.raises(UserError, match="is not a DATASET"):
        open_dataset(copy.parent)
    shard = next(copy.glob("*train*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=shard.name):
        open_dataset(copy)
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        open_dataset(copy)
    shard.write_bytes(content)
    manifest = copy / "dataset.json"
    text = manifest.read_text()
    for broken in ("", "[]", "{}", text[:-20], text.replace('"hop_length": 320', '"hop_length": 321')):
        manifest.write_text(broken)
        with pytest.raises(UserError, match=r"dataset\.json"):
            open_dataset(copy)
    for version, complaint in ((1, "older"), (3, "newer")):
        manifest.write_text(json.dumps(json.loads(text) | {"format_version": version}))
        with pytest.raises(UserError, match=complaint):
            open_dataset(copy)


def test_chunks_of_a_track_share_a_shard_and_tracks_spread():
    assert len({shard_index(f"album/track/{chunk}", 7) for chunk in range(20)}) == 1
    assert {shard_index(f"train-{clip:06d}", 4) for clip in range(50)} == {0, 1, 2, 3}


def test_the_bytes_of_a_record_do_not_depend_on_the_process():
    sound, codes = np.zeros((3, HOP_LENGTH), np.int16), np.zeros((3, 2), np.uint16)
    data = serialize(Record("one", sound, codes, {"hits": []}, {"title": "Größe"}))
    places = [data.index(name.encode()) for name in sorted(FIELDS)]
    assert places == sorted(places)


def test_an_empty_shard_and_a_record_ending_in_zeros(tmp_path):
    sound, codes = np.zeros((3, HOP_LENGTH), np.int16), np.zeros((3, 2), np.uint16)
    record = Record("one", sound, codes, {"hits": []}, {"title": "Größe"})
    dataset = write_dataset(
        tmp_path / "d", {"train": [record]}, codec=EnergyCodec(), fingerprint={}, shards={"train": 3}
    )
    loaded = dataset.source("train")[0]
    np.testing.assert_array_equal(loaded["waveform"], record.waveform)
    assert (loaded["id"], loaded["ground_truth"], loaded["provenance"]) == ("one", {"hits": []}, {"title": "Größe"})
    with pytest.raises(UserError, match="holds no one-shots"):
        prepare.load_one_shots(dataset)


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_same_batches(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def batches_of(dataset: Dataset, **changes):
    return training_iterator(dataset, **({"batch_size": 4, "crop_frames": 8, "seed": 5} | changes))


def test_batches_are_crops_of_records(world):
    batch = next(batches_of(world))
    assert batch["waveform"].shape == (4, 8, HOP_LENGTH)
    assert batch["waveform"].dtype == np.int16
    assert batch["codes"].shape == (4, 8, 2)
    assert batch["codes"].dtype == np.uint16
    sound = to_float32(batch["waveform"]).reshape(4, -1)
    np.testing.assert_array_equal(batch["codes"], EnergyCodec().encode(sound))


def test_each_epoch_is_every_record_once_in_a_new_order(world):
    whole = world.load_split("train")["waveform"]
    rows = np.concatenate([b["waveform"] for b in take(batches_of(world, batch_size=5, crop_frames=20), 6)])
    order = [int(np.flatnonzero((whole == row).all(axis=(1, 2)))[0]) for row in rows]
    epochs = [order[:10], order[10:20], order[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_decides_and_crops_move(world):
    assert_same_batches(take(batches_of(world), 4), take(batches_of(world), 4))
    other = next(batches_of(world, seed=6))
    assert (other["waveform"] != next(batches_of(world))["waveform"]).any()
    epochs = take(batches_of(world, batch_size=10), 2)
    first, second = ({crop.tobytes() for crop in epoch["waveform"]} for epoch in epochs)
    assert first != second


def test_resume_is_exact_whatever_the_workers(world):
    reference = take(batches_of(world), 12)
    for before, after in ((0, 2), (2, 0)):
        iterator = batches_of(world, workers=before)
        assert_same_batches(take(iterator, 5), reference[:5])
        state = json.loads(json.dumps(iterator.get_state()))
        iterator.close()
        resumed = batches_of(world, workers=after)
        resumed.set_state(state)
        assert_same_batches(take(resumed, 7), reference[5:])
        resumed.close()


def test_an_iterator_can_be_set_back(world):
    iterator = batches_of(world)
    reference = take(iterator, 4)
    iterator.set_state({"next_batch": 1})
    assert_same_batches(take(iterator, 3), reference[1:])


def test_the_batches_of_two_hosts_make_the_batch_of_one(world):
    whole = take(batches_of(world), 6)
    halves = [take(batches_of(world, share=HostShare((host,), 2)), 6) for host in (0, 1)]
    together = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same_batches(together, whole)


def test_a_source_pickles_after_reading(world):
    source = world.source("train")
    record = source[3]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["waveform"], record["waveform"])
    with pytest.raises(IndexError):
        source[10]


def test_batches_that_cannot_be_made_are_refused(world):
    with pytest.raises(UserError, match=r"training\.crop_frames is 21.*data\.clip_frames"):
        batches_of(world, crop_frames=21)
    with pytest.raises(UserError, match=r"training\.batch_size"):
        batches_of(world, batch_size=5, share=HostShare((0,), 2))
    with pytest.raises(UserError, match="seed is -1"):
        batches_of(world, seed=-1)


def test_the_command(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "d"), "--data.train-clips", "3", "--data.clip-frames", "8"]
    assert pipeline.main(arguments) == 0
    assert "3 train, 64 validation, 64 test records" in capsys.readouterr().out
    assert pipeline.main([*arguments, "--data.num-drums", "5"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert pipeline.main(["--output", str(tmp_path / "e"), "--data.num-drums", "9"]) == 2
    assert "data.num_drums is 9" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
