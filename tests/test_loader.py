"""Mixed and labelled batches: the same whatever the hosts, in the right shares, cut at whole blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_stubs import EnergyCodec

from melodjinn_jax.data.audio import HOP_LENGTH
from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.labels import complete_labels, encode_label, labels_folder, shard_names
from melodjinn_jax.data.loader import HostShare, training_iterator
from melodjinn_jax.data.mixture import Mixture, open_mixture
from melodjinn_jax.data.records import Record
from melodjinn_jax.data.writer import write_array_record, write_dataset
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import ActionSpace

FRAMES, STRIDE = 30, 4
SPACE = ActionSpace(STRIDE, (0, 1, 2), "codebook")


def first_frame(record: int) -> int:
    return record % STRIDE


def write_numbers(path, number: int, count: int, digest: str = "energy") -> Dataset:
    """A DATASET whose codes say the DATASET, the record and the frame; its labels the record and the block."""
    codec = EnergyCodec()
    codec.digest = digest
    records = []
    for record in range(count):
        codes = np.stack([np.full(FRAMES, number * 100 + record), np.arange(FRAMES)], axis=1).astype(np.uint16)
        records.append(Record(f"{number}-{record}", np.zeros((FRAMES, HOP_LENGTH), np.int16), codes))
    dataset = write_dataset(path, {"train": records}, codec=codec, fingerprint={}, shards={"train": 2})
    folder = labels_folder(dataset, SPACE)
    folder.mkdir(parents=True)
    for name in shard_names(dataset):
        source = dataset.shard_source(name)
        labels = []
        for index in range(len(source)):
            record = int(source[index]["id"].split("-")[1])
            blocks = (FRAMES - first_frame(record)) // STRIDE
            labels.append(encode_label(first_frame(record), 1000 * record + np.arange(blocks - 1)))
        write_array_record(folder / name, labels)
    complete_labels(dataset, SPACE)
    return dataset


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("numbers")
    counts = (7, 5, 3)
    return [str(write_numbers(folder / f"d{i}", i, count).path) for i, count in enumerate(counts)]


@pytest.fixture(scope="module")
def mixture(paths) -> Mixture:
    return open_mixture(paths, (0.5, 0.3, 0.2), "auto")


def batches(data, count: int, state: dict | None = None, **changes) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 8, "crop_frames": 12, "seed": 3, "stride": STRIDE, "fields": ("codes",)}
    iterator = training_iterator(data, **(options | changes))
    if state:
        iterator.set_state(state)
    return [next(iterator) for _ in range(count)]


def together(hosts: list[list[dict]]) -> list[dict]:
    return [{name: np.concatenate([b[name] for b in own]) for name in own[0]} for own in zip(*hosts, strict=True)]


def assert_same(left: list[dict], right: list[dict]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_hosts_reads_the_same_batches_from_wherever_it_resumes(mixture, count):
    whole = batches(mixture, 9)
    hosts = [batches(mixture, 5, {"next_batch": 4}, share=HostShare((i,), count)) for i in range(count)]
    assert_same(together(hosts), whole[4:])


def test_a_host_may_have_parts_that_do_not_follow_each_other(mixture):
    whole = batches(mixture, 4)
    hosts = [batches(mixture, 4, share=HostShare(parts, 4)) for parts in ((0, 2), (1, 3))]
    for batch, first, second in zip(whole, *hosts, strict=True):
        pieces = [first["codes"][:2], second["codes"][:2], first["codes"][2:], second["codes"][2:]]
        np.testing.assert_array_equal(np.concatenate(pieces), batch["codes"])


def test_seeds_differ_and_repeat(mixture):
    assert_same(batches(mixture, 3), batches(mixture, 3))
    assert (batches(mixture, 1)[0]["codes"] != batches(mixture, 1, seed=4)[0]["codes"]).any()


def shares(data, rows: int) -> np.ndarray:
    found = np.concatenate([batch["codes"][:, 0, 0] // 100 for batch in batches(data, rows // 8)])
    return np.bincount(found, minlength=len(data.datasets)) / len(found)


def test_every_dataset_has_its_share_of_every_stretch(mixture, paths):
    np.testing.assert_allclose(shares(mixture, 80), (0.5, 0.3, 0.2), atol=0.02)
    np.testing.assert_allclose(shares(open_mixture(paths), 120), np.array([7, 5, 3]) / 15, atol=0.02)


def test_an_epoch_of_a_dataset_is_each_of_its_records_once(mixture):
    rows = np.concatenate([batch["codes"][:, 0, 0] for batch in batches(mixture, 10)])
    own = [row for row in rows if row < 100][:14]
    assert sorted(own[:7]) == sorted(own[7:]) == list(range(7))


@given(crop_blocks=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_labelled_crops_are_whole_blocks_with_the_actions_between_them(mixture, crop_blocks, seed):
    (batch,) = batches(mixture, 1, crop_frames=crop_blocks * STRIDE, seed=seed)
    assert batch["actions"].dtype == np.uint16
    for codes, actions in zip(batch["codes"], batch["actions"], strict=True):
        record, start = int(codes[0, 0]) % 100, int(codes[0, 1])
        np.testing.assert_array_equal(codes[:, 1], start + np.arange(crop_blocks * STRIDE))
        assert (start - first_frame(record)) % STRIDE == 0
        block = (start - first_frame(record)) // STRIDE
        np.testing.assert_array_equal(actions, 1000 * record + block + np.arange(crop_blocks - 1))


def test_crops_without_labels_begin_at_whole_blocks_of_the_record(paths):
    starts = np.concatenate([batch["codes"][:, 0, 1] for batch in batches(open_mixture(paths), 20)])
    assert set(starts) == {0, 4, 8, 12, 16}


def test_what_does_not_belong_together_is_refused_in_one_sentence(paths, tmp_path):
    other = write_numbers(tmp_path / "other", 4, 3, digest="another")
    with pytest.raises(UserError, match=r"cannot be mixed, for their codec_digest is another and energy"):
        open_mixture([paths[0], str(other.path)])
    with pytest.raises(UserError, match=r"has no labels 1234 \(it has [0-9a-f]{12}\): make them with"):
        open_mixture(paths, (), "1234")
    with pytest.raises(UserError, match=r"training\.crop_frames is 28, but .* have 27 frames to crop from"):
        batches(open_mixture(paths, (), "auto"), 1, crop_frames=28)


def test_damage_is_named_with_its_file(tmp_path):
    dataset = write_numbers(tmp_path / "d", 0, 9)
    labels = labels_folder(dataset, SPACE)
    for folder in (labels, dataset.path):
        sound = (folder / shard_names(dataset)[1]).read_bytes()
        (folder / shard_names(dataset)[1]).write_bytes(sound[: len(sound) // 2] + bytes(len(sound) - len(sound) // 2))
        with pytest.raises(UserError, match=f"(record|label) \\d+ of {folder / shard_names(dataset)[1]} is damaged"):
            batches(open_mixture([str(dataset.path)], (), "auto"), 20)
        (folder / shard_names(dataset)[1]).write_bytes(sound)
    manifest = labels / "actions.json"
    manifest.write_text(manifest.read_text().replace('"stride": 4', '"stride": 2'))
    with pytest.raises(UserError, match=r"actions\.json is damaged"):
        open_mixture([str(dataset.path)], (), "auto")
