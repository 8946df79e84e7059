"""A recording decodes whole, in bounded memory, or is refused with the true reason."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.data.audio import SAMPLE_RATE, load_audio
from melodjinn_jax.ingest import decode
from melodjinn_jax.ingest.decode import RejectedError, Resampler, decode_blocks, read_header

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "aiff": "PCM_16"}
KINDS = ("missing", "empty", "unreadable", "not audio", "unsupported", "damaged", "incomplete", "several recordings")


def noise(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    shape = (int(rate * seconds), channels)
    return np.random.default_rng(0).normal(0, 0.1, shape).clip(-0.9, 0.9).astype(np.float32)


def decoded(path: Path, seconds: float | None = None) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *decode_blocks(path, seconds)])


def attempt(path: Path) -> np.ndarray | str:
    """The sound, or why there is none."""
    try:
        return decoded(path)
    except RejectedError as error:
        return str(error)


def refusal(path: Path, seconds: float | None = None) -> str:
    with pytest.raises(RejectedError) as refused:
        decoded(path, seconds)
    text = str(refused.value)
    assert text.partition(":")[0] in KINDS
    assert str(path) not in text
    return text


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict[str, bytes]:
    """Four seconds as the bytes of a file in each format."""
    folder = tmp_path_factory.mktemp("encoded")
    for suffix, subtype in FORMATS.items():
        soundfile.write(folder / f"a.{suffix}", noise(44100, 4), 44100, subtype=subtype)
    return {suffix: (folder / f"a.{suffix}").read_bytes() for suffix in FORMATS}


@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44056, 44100, 48000, 88200, 96000, 192000]),
    length=st.integers(1, 9000),
    cuts=st.lists(st.integers(0, 9000), max_size=8),
)
@settings(max_examples=60)
def test_a_stream_is_resampled_as_the_whole_is(rate, length, cuts):
    samples = np.random.default_rng(length).normal(size=length).astype(np.float32)
    divisor = np.gcd(rate, SAMPLE_RATE)
    whole = scipy.signal.resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor)
    stream = Resampler(rate, SAMPLE_RATE)
    parts = [stream.push(part) for part in np.split(samples, sorted(min(cut, length) for cut in cuts))]
    np.testing.assert_array_equal(np.concatenate([*parts, stream.finish()]), whole)


def test_what_a_resampler_keeps_does_not_grow():
    stream, kept = Resampler(44100, SAMPLE_RATE), []
    for _ in range(50):
        stream.push(np.zeros(5000, np.float32))
        kept.append(len(stream._kept))
    assert max(kept) < 6000


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_blocks_make_up_what_is_loaded_whole(tmp_path, monkeypatch, suffix, rate):
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, noise(rate, 3.3, 2), rate, subtype=FORMATS[suffix])
    whole = decoded(file)
    np.testing.assert_allclose(whole, load_audio(file), atol=1e-5)
    monkeypatch.setattr(decode, "BLOCK_SECONDS", 1)
    blocks = list(decode_blocks(file))
    assert len(blocks) >= 3
    assert max(map(len, blocks)) <= 1.1 * SAMPLE_RATE
    # libmpg123 rounds by the sizes it is read in.
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6 if suffix == "mp3" else 0)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("rate", [8000, 192000])
def test_channels_are_averaged_at_any_rate(tmp_path, channels, rate):
    sound = noise(rate, 0.5, channels)
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    divisor = np.gcd(rate, SAMPLE_RATE)
    expected = scipy.signal.resample_poly(sound.mean(axis=1), SAMPLE_RATE // divisor, rate // divisor)
    np.testing.assert_allclose(decoded(tmp_path / "a.wav"), expected, atol=1e-6)


def test_levels_beyond_full_scale_are_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", 9 * noise(SAMPLE_RATE, 1), SAMPLE_RATE, subtype="FLOAT")
    assert np.abs(decoded(tmp_path / "a.wav")).max() > 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_was_cut_off_is_refused(tmp_path, encoded, suffix):
    content = encoded[suffix]
    (tmp_path / f"whole.{suffix}").write_bytes(content)
    assert len(decoded(tmp_path / f"whole.{suffix}")) >= 4 * SAMPLE_RATE
    for share in (0.2, 0.5, 0.8):
        (tmp_path / f"cut.{suffix}").write_bytes(content[: int(share * len(content))])
        kind = refusal(tmp_path / f"cut.{suffix}").partition(":")[0]
        assert kind in ("incomplete", "damaged")


def without_info_frame(mp3: bytes) -> bytes:
    """The same without the first frame, which states how many there are."""
    return mp3[mp3.index(b"\xff\xfb", 4) :]


def test_an_mp3_that_states_no_length_is_held_against_the_catalogue(tmp_path):
    soundfile.write(tmp_path / "a.mp3", noise(44100, 4), 44100, bitrate_mode="CONSTANT", compression_level=0.5)
    content = without_info_frame((tmp_path / "a.mp3").read_bytes())
    (tmp_path / "a.mp3").write_bytes(content[: len(content) // 2])
    assert len(decoded(tmp_path / "a.mp3")) == pytest.approx(2 * SAMPLE_RATE, rel=0.05)
    assert "catalogue states 60.0 s" in refusal(tmp_path / "a.mp3", 60.0)


def test_an_mp3_that_libsndfile_ends_at_a_guess_is_refused(tmp_path, encoded):
    """Of one with a varying bitrate and no length it guesses the length, and reads no further."""
    (tmp_path / "a.mp3").write_bytes(without_info_frame(encoded["mp3"]))
    assert "of the 4.0 s that its frames hold" in refusal(tmp_path / "a.mp3")


def test_a_catalogue_that_errs_a_little_is_no_fault(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(SAMPLE_RATE, 5), SAMPLE_RATE)
    for stated in (1.0, 5.0, 7.5):
        assert len(decoded(tmp_path / "a.wav", stated)) == 5 * SAMPLE_RATE
    assert "5.0 s, but its catalogue states 20.0 s" in refusal(tmp_path / "a.wav", 20.0)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg"])
def test_a_second_recording_in_a_file_is_not_lost_silently(tmp_path, encoded, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(encoded[suffix] * 2)
    assert "several recordings" in refusal(tmp_path / f"a.{suffix}")


def test_an_mp3_that_changes_its_rate_is_refused(tmp_path, encoded):
    soundfile.write(tmp_path / "b.mp3", noise(32000, 2), 32000)
    (tmp_path / "a.mp3").write_bytes(encoded["mp3"] + (tmp_path / "b.mp3").read_bytes())
    assert "from 44100 to 32000 Hz" in refusal(tmp_path / "a.mp3")


def test_mp3s_one_after_another_count_as_one_or_are_refused(tmp_path, encoded):
    (tmp_path / "a.mp3").write_bytes(encoded["mp3"] * 2)
    result = attempt(tmp_path / "a.mp3")
    assert "incomplete" in result if isinstance(result, str) else len(result) > 7.9 * SAMPLE_RATE


def wav(samples: bytes, *, data_size: int, riff_size: int, rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    return struct.pack("<4sI4s", b"RIFF", riff_size, b"WAVE") + form + struct.pack("<4sI", b"data", data_size) + samples


def test_a_header_of_a_program_that_wrote_to_a_pipe_is_no_fault(tmp_path):
    samples = (noise(SAMPLE_RATE, 1) * 32767).astype("<i2").tobytes()
    (tmp_path / "a.wav").write_bytes(wav(samples, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF))
    assert len(decoded(tmp_path / "a.wav")) == SAMPLE_RATE


def test_a_header_that_promises_more_allocates_nothing_for_it(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(b"\0\1" * 999, data_size=0x70000000, riff_size=0x70000000))
    assert "cut off" in refusal(tmp_path / "a.wav")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda file: None, "missing"),
    "a folder": (lambda file: file.mkdir(), "missing"),
    "no bytes": (lambda file: file.touch(), "empty"),
    "no samples": (lambda file: soundfile.write(file, np.zeros(0), 24000), "empty"),
    "a web page": (lambda file: file.write_bytes(b"\n<!DOCTYPE html><p>Not found"), "not audio: it is a web page"),
    "text": (lambda file: file.write_bytes(b"not music " * 99), "not audio: its format"),
    "NaN": (lambda file: soundfile.write(file, np.array([0, np.nan]), 24000, subtype="FLOAT"), "damaged"),
    "infinity": (lambda file: soundfile.write(file, np.array([0, np.inf]), 24000, subtype="FLOAT"), "damaged"),
    "low rate": (lambda file: soundfile.write(file, np.zeros(9), 7000), "unsupported: 7000 Hz"),
    "high rate": (lambda file: soundfile.write(file, np.zeros(9), 384000), "unsupported: 384000 Hz"),
    "nine channels": (lambda file: soundfile.write(file, np.zeros((9, 9)), 24000), "unsupported: it has 9"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_with_the_true_reason(tmp_path, what):
    make, reason = BAD[what]
    make(tmp_path / "bad.wav")
    assert refusal(tmp_path / "bad.wav").startswith(reason)


def test_a_damaged_mp3_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"ID3\3\0\0\0\0\0\0" + b"\0" * 500)
    assert refusal(tmp_path / "a.mp3").startswith("not audio")


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
@pytest.mark.parametrize("damage", ["flip", "zero"])
def test_corrupt_bytes_lose_the_track_or_none_of_its_time(tmp_path, encoded, suffix, damage):
    content = np.frombuffer(encoded[suffix], np.uint8).copy()
    middle = slice(len(content) // 2, len(content) // 2 + 3000)
    content[middle] = 0 if damage == "zero" else content[middle] ^ 0x5A
    (tmp_path / f"a.{suffix}").write_bytes(content.tobytes())
    result = attempt(tmp_path / f"a.{suffix}")
    if isinstance(result, str):
        assert result.startswith(("damaged", "incomplete"))
    else:
        assert len(result) >= 3.6 * SAMPLE_RATE


@given(data=st.data(), suffix=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_decode_or_are_refused(tmp_path_factory, encoded, data, suffix):
    content = bytearray(encoded[suffix][: data.draw(st.integers(0, 20000), "length")])
    for _ in range(data.draw(st.integers(0, 6), "flips") if content else 0):
        position = data.draw(st.one_of(st.integers(0, 63), st.integers(0, len(content) - 1)))
        content[position % len(content)] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / f"a.{suffix}"
    file.write_bytes(content)
    result = attempt(file)
    if isinstance(result, str):
        assert result.partition(":")[0] in KINDS
    else:
        assert np.isfinite(result).all()


@pytest.mark.parametrize(
    "name", ["a b.wav", "ünïcode “quotes”.wav", "semi;colon'$(x).wav", "-dash.wav", "a" * 200, "latin-\udce9"]
)
def test_odd_names_are_no_hindrance(tmp_path, name):
    file = tmp_path / name
    soundfile.write(os.fsencode(file), noise(SAMPLE_RATE, 0.1), SAMPLE_RATE, format="WAV")
    assert len(decoded(file)) == 0.1 * SAMPLE_RATE


def test_tags_are_read(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", SAMPLE_RATE, 2) as file:
        file.artist, file.title, file.license = "Zoë", "mañana", "CC0"
        file.write(noise(SAMPLE_RATE, 0.1, 2))
    header = read_header(tmp_path / "a.flac")
    assert (header.artist, header.title, header.licence) == ("Zoë", "mañana", "CC0")
    assert (header.format, header.sample_rate, header.channels, header.frames) == ("FLAC", SAMPLE_RATE, 2, 2400)


def test_only_the_decoders_are_quiet():
    """What Python says of a download that waits must not get lost with the remarks of the decoders."""
    script = (
        "import os, sys\nfrom melodjinn_jax.ingest.decode import quiet_decoders\n"
        "with quiet_decoders():\n    os.write(2, b'remark ')\n    print('waits', file=sys.stderr)\n"
        "print('ends', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stderr == "waits\nends\n"
