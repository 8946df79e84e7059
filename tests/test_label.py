"""Labels of chunked tracks are those of the whole tracks, whatever was there before; nothing half done counts."""

import fcntl
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from music_world import CHUNK, codec, track, write_music

from melodjinn_jax.config import LatentActionConfig
from melodjinn_jax.data.audio import to_float32
from melodjinn_jax.data.dataset import open_dataset
from melodjinn_jax.data.labels import encode_label, find_labels, labels_folder, shard_names
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation import actions, labelling
from melodjinn_jax.evaluation.labelling import label_dataset
from melodjinn_jax.models.action_space import ActionSpace, digest_codebook
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.run import Run, make_models
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.workdir import WorkDir

TRACKS = {"train": {"a": 230, "b": 50, "c": 117}, "test": {"d": 160}}


def make_run(stride: int, seed: int = 0) -> Run:
    """A LAM that was never trained: frozen, with codes that all mean something."""
    config = tiny_config(
        latent_actions=LatentActionConfig(
            dim=16, num_heads=2, latent_dim=2, window=5, max_codes=8, action_stride=stride, collapse_frames=1
        )
    )
    models = make_models(config, codec())
    lam = jax.jit(models.init_lam)(jax.random.key(seed))
    codebook = models.init_codebook(jax.random.key(seed + 1))
    key_of_code = np.arange(8) // 2
    space = ActionSpace(stride, tuple(key_of_code.tolist()), digest_codebook(np.asarray(codebook["vectors"])))
    state = {"lam": lam, "feature_scale": np.float32(0.3), "codebook": codebook, "key_of_code": key_of_code}
    record = PhaseRecord(Phase.FROZEN, freeze_step=1, freeze_reason="deadline")
    return Run(WorkDir("lam_run"), config, codec(), models, 1, record, space, state)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_music(tmp_path_factory.mktemp("label") / "music", TRACKS)


@pytest.fixture
def copy(dataset, tmp_path):
    return open_dataset(shutil.copytree(dataset.path, tmp_path / "copy", ignore=shutil.ignore_patterns("actions")))


@pytest.mark.parametrize("stride", [1, 4])
def test_labels_of_a_chunked_track_are_those_of_the_whole(dataset, stride, monkeypatch):
    monkeypatch.setattr(actions, "PIECE_BLOCKS", 40)
    run = make_run(stride)
    labels = label_dataset(run, dataset)
    for split, named in TRACKS.items():
        source = labels.source(dataset, split, ("id", "provenance"))
        records = [source[index] for index in range(len(source))]
        for number, (name, frames) in enumerate(named.items()):
            whole = actions.extract_actions(run, to_float32(track(number, frames)).reshape(-1))
            assert len(set(whole.tolist())) > 1
            own = [record for record in records if record["id"].startswith(f"{name}/")]
            assert own
            for record in own:
                start = record["provenance"]["start_frame"]
                assert (start + record["first_frame"]) % stride == 0
                block = (start + record["first_frame"]) // stride
                assert len(record["actions"]) == (CHUNK - record["first_frame"]) // stride - 1
                np.testing.assert_array_equal(record["actions"], whole[block:][: len(record["actions"])])


def test_what_lies_before_the_first_record_is_silence_and_not_decoded(dataset, monkeypatch):
    given = []
    monkeypatch.setattr(Run, "heard", lambda run, recording, codes: given.append((recording, codes)) or recording)
    run, source = make_run(4), dataset.source("train")
    (index,) = (i for i in range(len(source)) if source[i]["id"] == "b/0000000")
    record = source[index]
    label = labelling.track_labels(run, source, {index: 19})[index]
    np.testing.assert_array_equal(given[0][0][0], record["waveform"])
    np.testing.assert_array_equal(given[0][1][0], record["codes"])
    whole = np.concatenate([np.zeros((19, 320), np.int16), record["waveform"]])
    assert label == encode_label(1, actions.encode_track(run, whole)[5:][: (CHUNK - 1) // 4 - 1])


def test_the_datasets_own_files_do_not_change_and_several_labels_stand_side_by_side(copy):
    spaces = [label_dataset(make_run(1, seed), copy).space for seed in (0, 10)]
    open_dataset(copy.path).verify()
    for space in spaces:
        assert find_labels(copy, space.digest[:7]).space == space
        assert find_labels(copy, space.digest).space == space
    with pytest.raises(UserError, match=r"has the labels .*, .*: name one of them in data\.actions"):
        find_labels(copy, "auto")


def test_a_killed_command_goes_on_and_the_files_are_the_same(copy, monkeypatch):
    run = make_run(1)
    reference = label_dataset(run, copy)
    expected = {path.name: path.read_bytes() for path in reference.folder.iterdir()}
    shutil.rmtree(reference.folder)
    done = []
    write = labelling.write_array_record

    def killed(file, contents):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(file)
        return write(file, contents)

    monkeypatch.setattr(labelling, "write_array_record", killed)
    with pytest.raises(KeyboardInterrupt):
        label_dataset(run, copy)
    with pytest.raises(UserError, match="has no labels auto"):
        find_labels(copy, "auto")
    before = {file: file.stat().st_mtime_ns for file in done}
    monkeypatch.setattr(labelling, "write_array_record", write)
    label_dataset(run, copy)
    label_dataset(run, copy)
    assert {file: file.stat().st_mtime_ns for file in done} == before
    assert {path.name: path.read_bytes() for path in reference.folder.iterdir()} == expected


def test_two_commands_never_write_the_same_labels(copy):
    run = make_run(1)
    folder = labels_folder(copy, run.action_space)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing labels to"):
            label_dataset(run, copy)
    label_dataset(run, copy)


def test_actions_that_may_change_and_other_codecs_are_refused(copy):
    run = make_run(1)
    moving = Run(**{**vars(run), "record": PhaseRecord(Phase.QUANTISE)})
    with pytest.raises(UserError, match="is in phase quantise, and its actions may still change: train it until"):
        label_dataset(moving, copy)
    without = Run(**{**vars(run), "state": {}})
    with pytest.raises(UserError, match="has no LAM: give the run that has it"):
        label_dataset(without, copy)
    other = codec()
    other.digest = "0123456789abcdef"
    with pytest.raises(UserError, match="this is the codec 0123456789ab"):
        label_dataset(Run(**{**vars(run), "codec": other}), copy)


def test_labels_of_other_records_are_refused(copy, tmp_path):
    run = make_run(1)
    folder = label_dataset(run, copy).folder
    other = write_music(tmp_path / "other", TRACKS, seed=5)
    shutil.copytree(folder, labels_folder(other, run.action_space))
    with pytest.raises(UserError, match="holds the labels of other records than"):
        find_labels(other, "auto")
    name = shard_names(copy)[0]
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name} is missing or has a wrong size"):
        find_labels(copy, "auto")
    manifest = json.loads((folder / "actions.json").read_text())
    (folder / "actions.json").write_text(json.dumps(manifest | {"format_version": 9}))
    with pytest.raises(UserError, match="has labels of format 9, not 1"):
        find_labels(copy, "auto")
