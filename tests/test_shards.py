"""A shard holds its tracks whole, with the codes that the whole tracks have, however it is made."""

import errno

import jax
import numpy as np
import pytest
import soundfile
from ingest_stubs import EnergyCodec

from melodjinn_jax.codecs.fitted import FittedCodec, initial_params
from melodjinn_jax.data import writer
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, to_float32
from melodjinn_jax.data.records import shard_index
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest import shards
from melodjinn_jax.ingest.shards import (
    DATASET,
    SHARDS,
    TRACKS,
    ChunkEncoder,
    Counts,
    ShardTrack,
    read_unit,
    split_units,
    unit_records,
    write_unit,
)

CHUNK = 10


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder of scanned tracks, and their sound."""
    folder = tmp_path_factory.mktemp("library")
    for name in (TRACKS, SHARDS, DATASET):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    # Whole chunks, whole frames, anything; more tracks than are encoded side by side.
    lengths = [CHUNK, 3 * CHUNK, CHUNK + 1, 25, 37, 2 * CHUNK + 9, 12.5, 44.01, 19.99, 33, 10.001]
    sounds = {
        f"track{i}": rng.integers(-9000, 9000, round(n * HOP_LENGTH)).astype(np.int16) for i, n in enumerate(lengths)
    }
    for name, sound in sounds.items():
        soundfile.write(folder / TRACKS / f"{name}.flac", sound, SAMPLE_RATE, subtype="PCM_16")
    return folder, sounds


def units_of(sounds, num_shards: int = 1):
    tracks = [ShardTrack(name, 0, len(sound), {"title": name}) for name, sound in sounds.items()]
    return split_units("train", tracks, num_shards, CHUNK)


def test_records_are_the_tracks_and_the_codes_of_the_whole_tracks(library):
    folder, sounds = library
    codec = EnergyCodec()
    counts, seen = Counts(), {name: set() for name in sounds}
    for record in unit_records(units_of(sounds)[0], folder / TRACKS, codec, counts):
        name, start = record.id.split("/")
        assert record.provenance == {"title": name, "start_frame": int(start)}
        sound = np.pad(sounds[name], (0, -len(sounds[name]) % HOP_LENGTH)).reshape(-1, HOP_LENGTH)
        codes = codec.encode(to_float32(sound).reshape(1, -1))[0]
        frames = slice(int(start), int(start) + CHUNK)
        np.testing.assert_array_equal(record.waveform, sound[frames])
        np.testing.assert_array_equal(record.codes, codes[frames])
        seen[name] |= set(range(frames.start, frames.stop))
    assert all(len(seen[name]) == -(-len(sound) // HOP_LENGTH) for name, sound in sounds.items())
    total = sum(-(-len(sound) // HOP_LENGTH) for sound in sounds.values())
    records = sum(-(-len(sound) // (CHUNK * HOP_LENGTH)) for sound in sounds.values())
    assert (counts.silent_records, counts.repeated_frames) == (0, records * CHUNK - total)


@pytest.mark.parametrize("frames", [7, 20])
def test_the_fitted_codec_encodes_chunks_as_it_does_the_whole(rng, frames):
    entries = np.random.default_rng(0).normal(size=(2, 16, 12)).astype(np.float32)
    codec = FittedCodec(initial_params(jax.random.key(0)), entries, gain=1.0)
    sound = rng.normal(0, 0.1, (2, 5 * frames * HOP_LENGTH)).astype(np.float32)
    encode = ChunkEncoder(codec, 2)
    chunks = [encode(chunk) for chunk in np.split(sound, 5, axis=1)]
    whole = codec.encode(sound)
    assert (np.concatenate(chunks, axis=1) == whole).mean() > 0.999  # but for ties of rounding


def test_a_stream_that_starts_anew_leaves_the_others_alone(rng):
    codec = EnergyCodec()
    sound = rng.normal(0, 0.1, (3, 3, 5 * HOP_LENGTH)).astype(np.float32)
    encode, codes = ChunkEncoder(codec, 3), []
    for step in range(3):
        if step == 2:
            encode.restart(1)
        codes.append(encode(sound[:, step]))
    whole = codec.encode(sound.reshape(3, -1))
    np.testing.assert_array_equal(np.concatenate(codes, axis=1)[[0, 2]], whole[[0, 2]])
    np.testing.assert_array_equal(codes[2][1], codec.encode(sound[1:2, 2])[0])


def test_a_scan_that_is_too_short_is_named_and_not_padded(library):
    folder, sounds = library
    longer = {"track0": np.concatenate([sounds["track0"], sounds["track0"]])}
    with pytest.raises(UserError, match=r"track0\.flac is shorter"):
        list(unit_records(units_of(longer)[0], folder / TRACKS, EnergyCodec(), Counts()))


def test_silent_records_are_left_out(library, tmp_path):
    sound = np.zeros(3 * CHUNK * HOP_LENGTH, np.int16)
    sound[-5:] = 1000
    soundfile.write(tmp_path / "a.flac", sound, SAMPLE_RATE, subtype="PCM_16")
    counts = Counts()
    records = list(unit_records(units_of({"a": sound})[0], tmp_path, EnergyCodec(), counts))
    assert [record.id for record in records] == [f"a/{2 * CHUNK:07d}"]
    assert counts.silent_records == 2


def test_a_track_taken_from_later_on_keeps_its_places(library):
    """Where the silence before a recording was cut off, records say where in the recording they are."""
    folder, sounds = library
    skipped, codec = 4, EnergyCodec()
    sound = sounds["track1"][skipped * HOP_LENGTH :]
    unit = split_units("train", [ShardTrack("track1", skipped * HOP_LENGTH, len(sound), {})], 1, CHUNK)[0]
    records = list(unit_records(unit, folder / TRACKS, codec, Counts()))
    # The track has three chunks; without what is skipped the third is cut short, so that its record begins earlier.
    assert [record.provenance["start_frame"] for record in records] == [skipped, skipped + CHUNK, 2 * CHUNK]
    frames = sounds["track1"].reshape(-1, HOP_LENGTH)
    codes = codec.encode(to_float32(sound).reshape(1, -1))[0]
    for record in records:
        start = record.provenance["start_frame"]
        assert record.id == f"track1/{start:07d}"
        np.testing.assert_array_equal(record.waveform, frames[start : start + CHUNK])
        np.testing.assert_array_equal(record.codes, codes[start - skipped :][:CHUNK])


def test_every_track_is_in_the_shard_of_its_hash(library):
    _, sounds = library
    units = units_of(sounds, 3)
    assert [unit.index for unit in units] == [0, 1, 2]
    assert sorted(track.id for unit in units for track in unit.tracks) == sorted(sounds)
    assert all(shard_index(f"{track.id}/0", 3) == unit.index for unit in units for track in unit.tracks)


def test_a_unit_is_done_once_and_gives_the_same_bytes_again(library, monkeypatch):
    folder, sounds = library
    units = units_of(sounds, 2)
    for unit in units:
        write_unit(unit, folder, EnergyCodec())
    files = {unit.name: (folder / DATASET / unit.name).read_bytes() for unit in units}
    done = [read_unit(unit, folder) for unit in units]
    assert sum(shard.num_records for shard, _ in done) > len(sounds)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", None)
        write_unit(units[0], folder, EnergyCodec())
    for unit in reversed(units):
        (folder / SHARDS / f"{unit.name}.json").unlink()
        write_unit(unit, folder, EnergyCodec())
    assert files == {unit.name: (folder / DATASET / unit.name).read_bytes() for unit in units}
    assert done == [read_unit(unit, folder) for unit in units]


def test_a_full_disk_leaves_no_shard(library, tmp_path, monkeypatch):
    class FullWriter:
        def __init__(self, path, options):
            open(path, "w").close()

        def write(self, data):
            raise RuntimeError("write() failed: No space left on device; at byte 1048576")

    folder, sounds = library
    monkeypatch.setattr(writer, "ArrayRecordWriter", FullWriter)
    records = unit_records(units_of(sounds)[0], folder / TRACKS, EnergyCodec(), Counts())
    with pytest.raises(OSError, match="No space") as refused:
        writer.write_shard(tmp_path / "shard", records)
    assert refused.value.errno == errno.ENOSPC
    assert not (tmp_path / "shard").exists()


def test_a_failing_codec_is_not_taken_for_a_full_disk(library, tmp_path, monkeypatch):
    folder, sounds = library
    codec = EnergyCodec()
    monkeypatch.setattr(codec, "encode", lambda waveform: (_ for _ in ()).throw(RuntimeError("device lost")), False)
    with pytest.raises(RuntimeError, match="device lost"):
        writer.write_shard(tmp_path / "s", unit_records(units_of(sounds)[0], folder / TRACKS, codec, Counts()))
