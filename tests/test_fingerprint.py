"""The same recording is found whatever its encoding; other recordings are not taken for it."""

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.ingest import fingerprint as module
from melodjinn_jax.ingest.decode import RejectedError, decode_blocks
from melodjinn_jax.ingest.fingerprint import Fingerprinter, components, find_near_duplicates

SHARED = Path(__file__).parents[2] / "shared" / "data"


def fingerprint(sound: np.ndarray, block: int = 240_000) -> np.ndarray:
    fingerprinter = Fingerprinter()
    for start in range(0, len(sound), block):
        fingerprinter.push(sound[start : start + block])
    return fingerprinter.words()


def music(seed: int, seconds: float = 20.0) -> np.ndarray:
    """Notes of a few harmonics, one after another, over a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = 0.003 * rng.normal(size=len(time))
    for start in np.arange(0, seconds, 0.25):
        pitch, level, after = rng.uniform(100, 900), rng.uniform(0.1, 0.4), time - start
        heard = (after >= 0) & (after < 1)
        for harmonic, gain in enumerate(rng.uniform(0, 1, 4), start=1):
            wave = np.sin(2 * np.pi * harmonic * pitch * after[heard]) * np.exp(-4 * after[heard])
            sound[heard] += level * gain * wave
    return (sound / np.abs(sound).max()).astype(np.float32)


@pytest.fixture(scope="module")
def collection() -> list[np.ndarray]:
    return [music(seed) for seed in range(6)]


@pytest.mark.parametrize("block", [1000, 16_384, 77_777, 10**7])
def test_block_sizes_do_not_matter(collection, block):
    np.testing.assert_array_equal(fingerprint(collection[0], block), fingerprint(collection[0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda sound: 0.05 * sound,
        lambda sound: np.concatenate([np.zeros(1105, np.float32), sound]),
        lambda sound: sound + 0.003 * np.random.default_rng(9).normal(size=len(sound)).astype(np.float32),
        lambda sound: np.convolve(sound, [0.5, 0.5], "same").astype(np.float32),
        lambda sound: sound[3 * SAMPLE_RATE + 1234 : 15 * SAMPLE_RATE],
        lambda sound: np.concatenate([np.zeros(4 * SAMPLE_RATE, np.float32), sound]),
    ],
    ids=["softer", "delayed", "noisy", "filtered", "excerpt", "after silence"],
)
def test_a_changed_copy_is_found_and_nothing_else(collection, change):
    words = [fingerprint(sound) for sound in [*collection, change(collection[2])]]
    assert find_near_duplicates(words) == [(2, 6)]


@pytest.mark.parametrize(("rate", "suffix"), [(44100, "mp3"), (16000, "ogg"), (48000, "flac")])
def test_another_encoding_is_found(tmp_path, collection, rate, suffix):
    sound = scipy.signal.resample_poly(collection[3], rate, SAMPLE_RATE)
    soundfile.write(tmp_path / f"a.{suffix}", 0.8 * sound, rate)
    copy = np.concatenate(list(decode_blocks(tmp_path / f"a.{suffix}")))
    words = [fingerprint(sound) for sound in [*collection, copy]]
    assert find_near_duplicates(words) == [(3, 6)]


def test_silence_and_short_sounds_are_like_nothing(collection):
    silence = np.zeros(20 * SAMPLE_RATE, np.float32)
    short = collection[0][: 2 * SAMPLE_RATE]
    click = silence.copy()
    click[SAMPLE_RATE] = 1
    sounds = [silence, silence, short, short, click, click, silence[:10]]
    assert find_near_duplicates([fingerprint(sound) for sound in sounds]) == []
    assert find_near_duplicates([]) == []


def test_only_the_beginning_counts():
    words = fingerprint(np.tile(music(0), 12))
    assert len(words) <= module.MAX_SECONDS * SAMPLE_RATE / module.HOP


def test_a_large_collection_is_sampled_and_copies_are_still_found(collection, monkeypatch):
    words = [fingerprint(sound) for sound in [*collection, *(0.5 * sound for sound in collection)]]
    monkeypatch.setattr(module, "_MAX_KEYS", sum(map(len, words)) // 3)
    assert find_near_duplicates(words) == [(index, index + 6) for index in range(6)]


@given(
    st.integers(1, 12).flatmap(
        lambda count: st.tuples(st.just(count), st.lists(st.tuples(*[st.integers(0, count - 1)] * 2)))
    )
)
def test_components_are_what_links_join(graph):
    count, links = graph
    root = components(count, links)
    assert all(root[left] == root[right] for left, right in links)
    reached = {thing: {thing} for thing in range(count)}
    for _ in range(count):
        for left, right in links:
            reached[left] |= reached[right]
            reached[right] |= reached[left]
    assert root == [min(reached[thing]) for thing in range(count)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recordings in shared/data beside the repository")
def test_among_real_recordings_exactly_the_pairs_are_found():
    names, words = [], []
    for path in sorted(SHARED.rglob("*")):
        if path.suffix in {".wav", ".flac", ".mp3", ".ogg"}:
            fingerprinter = Fingerprinter()
            try:
                for block in decode_blocks(path):
                    fingerprinter.push(block)
            except RejectedError:
                continue
            names.append(path.name)
            words.append(fingerprinter.words())
    pairs = {frozenset((names[left], names[right])) for left, right in find_near_duplicates(words)}
    assert pairs == {
        frozenset({"test_48k.wav", "electro_1.mp3"}),
        frozenset({"ds10_maintenance.mp3", "ds10_maintenance_320k.mp3"}),
    }
