"""The drums sound when the ground truth says so, and the world is the same at every call."""

import dataclasses
import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import DRUM_NAMES, DataConfig
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE
from melodjinn_jax.data.one_shots import (
    MAX_FILES,
    MAX_FRAMES,
    PEAK,
    level_for_mix,
    one_shots_for,
    read_one_shots,
    synthetic_one_shots,
)
from melodjinn_jax.data.toy_drums import SPLITS, Hit, make_clips, render
from melodjinn_jax.errors import UserError

SMALL = DataConfig(train_clips=6, heldout_clips=3)
DRUMS = one_shots_for(SMALL)

worlds = st.builds(
    DataConfig,
    rhythm=st.sampled_from(["random", "loop"]),
    offsets=st.booleans(),
    min_velocity=st.sampled_from([0.3, 1.0]),
    hits_per_second=st.sampled_from([1.0, 4.0, 9.0]),
    min_gap=st.integers(1, 6),
    loop_frames=st.integers(12, 25),
    clip_frames=st.integers(1, 96),
    train_clips=st.just(4),
    seed=st.integers(0, 2**40),
)


@given(worlds)
@settings(max_examples=60, deadline=None)
def test_the_ground_truth_is_the_sound(data):
    drums = one_shots_for(data)
    for clip in make_clips(data, drums, "train"):
        assert clip.waveform.shape == (data.clip_frames * HOP_LENGTH,)
        assert clip.waveform.dtype == np.float32
        assert np.abs(clip.waveform).max() < 1, "a mix must never clip"
        residual = np.pad(clip.waveform.astype(np.float64), (0, drums.waveforms.shape[1]))
        for hit in clip.hits:
            residual[hit.sample : hit.sample + drums.waveforms.shape[1]] -= hit.gain * drums.waveforms[hit.drum]
        np.testing.assert_allclose(residual[: len(clip.waveform)], 0, atol=1e-6)
        starts = [hit.sample for hit in clip.hits]
        assert all(later - earlier >= data.min_gap * HOP_LENGTH for earlier, later in itertools.pairwise(starts))
        assert all(0 <= start < len(clip.waveform) for start in starts)
        assert all(0 <= hit.drum < data.num_drums and data.min_velocity <= hit.gain <= 1 for hit in clip.hits)
        assert data.offsets or all(start % HOP_LENGTH == 0 for start in starts)


def test_energy_rises_at_each_hit():
    for clip in make_clips(dataclasses.replace(SMALL, min_gap=12), DRUMS, "train"):
        for hit in clip.hits:
            before, after = (clip.waveform[max(0, hit.sample + a) : hit.sample + b] for a, b in ((-240, 0), (0, 240)))
            assert (after**2).sum() > 10 * (before**2).sum()


def test_offsets_fill_the_frame_and_the_mean_rate_is_as_asked():
    data = DataConfig(train_clips=300)
    hits = [hit for clip in make_clips(data, DRUMS, "train") for hit in clip.hits]
    assert len(hits) / (300 * 96 / 75) == pytest.approx(data.hits_per_second, rel=0.05)
    counts, _ = np.histogram([hit.sample % HOP_LENGTH for hit in hits], bins=8, range=(0, HOP_LENGTH))
    assert counts.min() > 0.7 * counts.mean()
    assert set(np.bincount([hit.drum for hit in hits]) > 400) == {True}


@pytest.mark.parametrize("rhythm", ["random", "loop"])
def test_a_clip_depends_on_its_seed_and_index_only(rhythm):
    data = dataclasses.replace(SMALL, rhythm=rhythm, min_velocity=0.5)
    clips = {split: make_clips(data, DRUMS, split) for split in SPLITS}
    more = make_clips(dataclasses.replace(data, train_clips=9), DRUMS, "train")
    for clip, again in zip(clips["train"], more, strict=False):
        assert clip.hits == again.hits
        np.testing.assert_array_equal(clip.waveform, again.waveform)
    hits = [clip.hits for split in SPLITS for clip in clips[split]]
    hits += [clip.hits for clip in make_clips(dataclasses.replace(data, seed=1), DRUMS, "train")]
    assert len(set(hits)) == len(hits), "no two clips of any split or seed are alike"


def test_a_loop_repeats():
    data = dataclasses.replace(SMALL, rhythm="loop", min_velocity=0.5)
    period = data.loop_frames * HOP_LENGTH
    for clip in make_clips(data, DRUMS, "train"):
        hits = set(clip.hits)
        later = {hit._replace(sample=hit.sample + period) for hit in hits}
        assert {hit for hit in later if hit.sample < len(clip.waveform)} == {h for h in hits if h.sample >= period}
        assert len({hit.sample % period for hit in hits}) in (2, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_gap", 0),
        ("clip_frames", 0),
        ("train_clips", 0),
        ("heldout_clips", 0),
        ("seed", -1),
        ("min_velocity", 0.0),
        ("min_velocity", 1.1),
        ("hits_per_second", 0.0),
        ("hits_per_second", 18.75),
        ("loop_frames", 7),
    ],
)
def test_settings_that_cannot_work_are_named(field, value):
    data = dataclasses.replace(SMALL, **{"rhythm": "loop" if field == "loop_frames" else "random", field: value})
    with pytest.raises(UserError, match=f"data.{field}"):
        make_clips(data, DRUMS, "train")


def test_synthetic_drums_are_loud_at_once_and_distinct():
    drums = synthetic_one_shots(5)
    assert drums.names == DRUM_NAMES
    assert drums.waveforms.shape == (5, 12 * HOP_LENGTH)
    np.testing.assert_allclose(np.abs(drums.waveforms).max(axis=1), PEAK, rtol=1e-6)
    assert (np.argmax(np.abs(drums.waveforms) > 0.1 * PEAK, axis=1) < 24).all(), "the attack is within 1 ms"
    spectra = np.abs(np.fft.rfft(drums.waveforms)).reshape(5, -1)
    spectra = np.stack([spectra[:, k : k + 40].sum(axis=1) for k in range(0, 1920, 40)], axis=1)
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    assert (spectra @ spectra.T)[np.triu_indices(5, 1)].max() < 0.98
    np.testing.assert_array_equal(synthetic_one_shots(2).waveforms, drums.waveforms[:2])
    for number in (0, 6):
        with pytest.raises(UserError, match=r"data\.num_drums"):
            synthetic_one_shots(number)


@given(st.integers(1, 13), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=20))
@settings(max_examples=40, deadline=None)
def test_the_densest_mix_stays_below_full_scale(min_gap, sequence):
    """Hits exactly at the gap or a little more, any drum: the level holds for all of them."""
    drums = level_for_mix(synthetic_one_shots(3), min_gap)
    hits, time = [], 0
    for extra, drum in sequence:
        hits.append(Hit(time, drum, 1.0))
        time += min_gap * HOP_LENGTH + extra
    assert np.abs(render(tuple(hits), drums, time + 1)).max() < 1


def burst(seconds: float, rate: int = 44100) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(-1, 1, int(seconds * rate))
    return 0.3 * noise * np.linspace(1, 0.2, len(noise))


def test_recordings_are_trimmed_faded_and_levelled(tmp_path):
    late = np.concatenate([1e-4 * np.ones(2000), burst(0.1), np.zeros(9 * 44100)])
    soundfile.write(tmp_path / "b_late.wav", np.stack([late, late], axis=1), 44100)
    soundfile.write(tmp_path / "a_long.flac", burst(1.5, 24000), 24000)
    (tmp_path / "notes.txt").write_text("not a sound")
    (tmp_path / "._b_late.wav").write_bytes(b"what some file systems leave behind")
    drums = read_one_shots(tmp_path)
    assert drums.names == ("a_long", "b_late")
    assert drums.waveforms.shape == (2, MAX_FRAMES * HOP_LENGTH)
    np.testing.assert_allclose(np.abs(drums.waveforms).max(axis=1), PEAK, rtol=1e-5)
    assert (np.argmax(np.abs(drums.waveforms) > 0.1 * PEAK, axis=1) < 24).all(), "the onset is within 1 ms"
    assert np.abs(drums.waveforms[0, -20:]).max() < 1e-4, "a long tail is faded out"
    assert not drums.waveforms[1, 2600:].any(), "silence after the sound is cut"


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(999), "is silent"),
        (np.stack([burst(0.1), -burst(0.1)], axis=1), "is silent"),
        (burst(2.5), r"may last 2 s"),
        (np.array([0.1, np.nan]), "not finite"),
        (np.zeros(0), "no samples"),
    ],
)
def test_bad_recordings_are_named(tmp_path, samples, reason):
    soundfile.write(tmp_path / "good.wav", burst(0.1), 44100)
    soundfile.write(tmp_path / "poor.wav", samples, 44100, subtype="FLOAT")
    with pytest.raises(UserError, match=f"poor.wav.*{reason}"):
        read_one_shots(tmp_path)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere, which is not a folder"):
        read_one_shots(tmp_path / "nowhere")
    (tmp_path / "cover.jpg").write_bytes(b"a picture")
    with pytest.raises(UserError, match="holds no WAV"):
        read_one_shots(tmp_path)
    for number in range(MAX_FILES + 1):
        soundfile.write(tmp_path / f"{number}.wav", burst(0.05), SAMPLE_RATE)
    with pytest.raises(UserError, match="17 audio files"):
        read_one_shots(tmp_path)
    (tmp_path / "0.wav").rename(tmp_path / "1.flac")
    (tmp_path / "2.wav").unlink()
    with pytest.raises(UserError, match="rename one"):
        read_one_shots(tmp_path)
