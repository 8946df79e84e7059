"""Any sound file either loads as finite 24 kHz mono or is refused in one sentence that names it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.data.audio import SAMPLE_RATE, load_audio, to_float32, to_int16, write_wav
from melodjinn_jax.errors import UserError

FORMATS = {"wav": "PCM_16", "flac": "PCM_24", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.25) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict[str, bytes]:
    """The same quarter second as the bytes of a file in each format."""
    folder = tmp_path_factory.mktemp("encoded")
    for suffix, subtype in FORMATS.items():
        soundfile.write(folder / f"a.{suffix}", tone(44100), 44100, subtype=subtype)
    return {suffix: (folder / f"a.{suffix}").read_bytes() for suffix in FORMATS}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_every_format_and_rate_keeps_pitch_length_and_level(tmp_path, suffix, rate):
    file = tmp_path / f"tone.{suffix}"
    soundfile.write(file, np.stack([tone(rate), tone(rate)], axis=1), rate, subtype=FORMATS[suffix])
    loaded = load_audio(file)
    assert loaded.dtype == np.float32
    assert abs(len(loaded) - SAMPLE_RATE / 4) <= 1200  # lossy coders pad by up to two of their blocks
    middle = loaded[1500:4500]
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 24000)))
    assert abs(peak - 440) <= 2
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_channels_are_averaged(tmp_path):
    left, right = tone(SAMPLE_RATE), tone(SAMPLE_RATE, 1000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right, 0 * left], axis=1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), (left + right) / 3, atol=1e-6)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(max_examples=30)
def test_int16_round_trip_is_exact(tmp_path_factory, samples):
    samples = np.array(samples, np.int16)
    np.testing.assert_array_equal(to_int16(to_float32(samples)), samples)
    file = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(file, to_float32(samples))
    np.testing.assert_array_equal(load_audio(file), to_float32(samples))


def test_writing_clips_and_reports_a_missing_folder(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([-3.0, 3.0, 0.0], np.float32))
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), [-1, 32767 / 32768, 0])
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        write_wav(tmp_path / "nowhere" / "a.wav", np.zeros(3, np.float32))


def _write(file: Path, samples: np.ndarray) -> None:
    soundfile.write(file, samples, SAMPLE_RATE, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda file: None, "not a file"),
        (lambda file: file.mkdir(), "not a file"),
        (lambda file: file.touch(), "is empty"),
        (lambda file: file.write_bytes(b"not music " * 99), "cannot be read as audio"),
        (lambda file: _write(file, np.zeros(0)), "no samples"),
        (lambda file: _write(file, np.array([0, np.nan, 0])), "not finite"),
        (lambda file: _write(file, np.array([0, np.inf, 0])), "not finite"),
        (lambda file: soundfile.write(file, np.zeros(9), 7), "sample rate of 7 Hz"),
    ],
)
def test_bad_files_are_named(tmp_path, make, reason):
    file = tmp_path / "bad.wav"
    make(file)
    with pytest.raises(UserError, match=reason) as caught:
        load_audio(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data(), suffix=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_loads_or_is_refused(tmp_path_factory, encoded, data, suffix):
    content = bytearray(encoded[suffix])
    for _ in range(data.draw(st.integers(0, 6), "flips")):
        # Headers decide most: half of the flips fall there.
        position = data.draw(st.one_of(st.integers(0, 63), st.integers(0, len(content) - 1)))
        content[position] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / f"a.{suffix}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)), "length")])
    try:
        loaded = load_audio(file)
    except UserError as error:
        refusal = str(error)
    else:
        assert loaded.dtype == np.float32
        assert len(loaded)
        assert np.isfinite(loaded).all()
        refusal = str(file)
    assert str(file) in refusal
