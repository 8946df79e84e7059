"""The fitted codecs: causal both ways, the same in a stream, silent for silence, safe on disk, reproducible."""

import dataclasses

import numpy as np
import pytest
from ingest_stubs import tune

from melodjinn_jax.codecs import FittedCodec, MusicCodec, fit_codec, load_codec, require_same_codec
from melodjinn_jax.codecs.base import ARRAYS_FILE, HEADER_FILE
from melodjinn_jax.config import CodecConfig, DataConfig
from melodjinn_jax.data.one_shots import one_shots_for
from melodjinn_jax.data.toy_drums import make_clips
from melodjinn_jax.errors import UserError

FRAMES, HOP = 24, 320
CONFIG = CodecConfig(codebook_size=16, num_codebooks=2, steps=150)
MUSIC_CONFIG = CodecConfig(codebook_size=16, num_codebooks=2, steps=30)
REMEMBERED = {FittedCodec: 7, MusicCodec: 5}
"""Frames in which a code is heard: its own, those of the decoder's context, and the last one's tail."""


@pytest.fixture(scope="module")
def clips():
    data = DataConfig(train_clips=24, clip_frames=FRAMES, hits_per_second=8)
    return np.stack([clip.waveform for clip in make_clips(data, one_shots_for(data), "train")])


@pytest.fixture(scope="module", params=REMEMBERED)
def codec(clips, request):
    return refit(clips, request.param)


def refit(clips, design, seed=0):
    config = CONFIG if design is FittedCodec else MUSIC_CONFIG
    return fit_codec(clips, dataclasses.replace(config, seed=seed), design=design)


@pytest.fixture
def codes(rng):
    return rng.integers(0, CONFIG.codebook_size, (3, FRAMES, CONFIG.num_codebooks))


def test_shapes_and_types(codec, clips):
    codes = codec.encode(clips)
    assert codes.shape == (len(clips), FRAMES, codec.num_codebooks)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < codec.codebook_size
    waveform = codec.decode(codes)
    assert waveform.shape == clips.shape
    assert waveform.dtype == np.float32


def test_a_code_depends_on_no_later_sample(codec, clips, rng):
    frame = 9
    changed = clips[:4].copy()
    changed[:, (frame + 1) * HOP :] = rng.normal(0, 0.3, changed[:, (frame + 1) * HOP :].shape)
    before, after = codec.encode(clips[:4]), codec.encode(changed)
    assert np.array_equal(before[:, : frame + 1], after[:, : frame + 1])
    assert (before[:, frame + 1] != after[:, frame + 1]).any()


def test_sound_depends_on_no_later_code_and_forgets_old_ones(codec, codes):
    frame, remembered = 8, REMEMBERED[type(codec)]
    changed = codes.copy()
    changed[:, frame] = (changed[:, frame] + 1) % codec.codebook_size
    difference = np.abs(codec.decode(codes) - codec.decode(changed)).reshape(3, FRAMES, HOP).max(axis=(0, 2))
    assert difference[:frame].max() < 1e-6
    assert difference[frame] > 1e-4
    assert difference[frame + remembered :].max() < 1e-6
    assert difference[frame + remembered - 1] > 1e-6


@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_stream_of_chunks_equals_the_whole_clip(codec, codes, clips, length):
    state = codec.initial_state(3)
    heard, sounded = [], []
    for start in range(0, FRAMES, length):
        state, chunk = codec.encode_chunk(state, clips[:3, start * HOP : (start + length) * HOP])
        heard.append(chunk)
        state, chunk = codec.decode_chunk(state, codes[:, start : start + length])
        sounded.append(chunk)
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), codec.encode(clips[:3]))
    np.testing.assert_allclose(np.concatenate(sounded, axis=1), codec.decode(codes), atol=1e-5)


def test_a_long_clip_in_chunks_equals_one_call(codec, codes, clips, monkeypatch):
    whole_codes, whole_sound = codec.encode(clips), codec.decode(codes)
    monkeypatch.setattr(codec, "chunk_frames", 7)
    np.testing.assert_array_equal(codec.encode(clips), whole_codes)
    np.testing.assert_allclose(codec.decode(codes), whole_sound, atol=1e-5)


def test_large_batches_equal_single_clips(codec, clips):
    codes = codec.encode(clips)
    np.testing.assert_array_equal(codes[20:21], codec.encode(clips[20:21]))
    np.testing.assert_allclose(codec.decode(codes)[20:21], codec.decode(codes[20:21]), atol=1e-5)


def test_silence_is_code_zero_and_silent(codec):
    codes = codec.encode(np.zeros((2, FRAMES * HOP), np.float32))
    assert not codes.any()
    assert np.abs(codec.decode(codes)).max() < 1e-4


def test_sound_comes_back_at_its_level_and_place(codec, clips):
    decoded = codec.decode(codec.encode(clips))
    level = 10 * np.log10((decoded**2).sum() / (clips**2).sum())
    assert abs(level) < 1
    truth, heard = (np.sqrt((x.reshape(len(clips), FRAMES, HOP) ** 2).mean(axis=2)).ravel() for x in (clips, decoded))
    assert np.corrcoef(truth, heard)[0, 1] > 0.6  # a fit this short has no more


def test_the_same_fit_gives_the_same_bytes(codec, clips, tmp_path):
    again = refit(clips, type(codec))
    assert again.digest == codec.digest
    assert refit(clips, type(codec), seed=1).digest != codec.digest
    codec.save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in (HEADER_FILE, ARRAYS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_save_and_load_round_trip(codec, codes, clips, tmp_path):
    codec.save(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")
    assert type(loaded) is type(codec)
    assert loaded.digest == codec.digest
    assert (loaded.num_codebooks, loaded.codebook_size) == (codec.num_codebooks, codec.codebook_size)
    np.testing.assert_array_equal(loaded.encode(clips), codec.encode(clips))
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))


@pytest.mark.parametrize("name", [HEADER_FILE, ARRAYS_FILE])
def test_any_flipped_byte_is_noticed(codec, tmp_path, rng, name):
    codec.save(tmp_path)
    intact = (tmp_path / name).read_bytes()
    for position in rng.integers(0, len(intact), 12):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / name).write_bytes(bytes(damaged))
        with pytest.raises(UserError, match="damaged"):
            load_codec(tmp_path)
    (tmp_path / name).write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_codec(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no codec"):
        load_codec(tmp_path)


def test_a_foreign_codec_is_refused(codec):
    require_same_codec(codec.digest, codec, "the model")
    with pytest.raises(UserError, match="the model was made with the codec 0000"):
        require_same_codec("0" * 64, codec, "the model")


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"codebook_size": 1}, "codebook_size"), ({"num_codebooks": 0}, "num_codebooks"), ({"steps": 1}, "steps")],
)
def test_impossible_settings_are_refused(clips, changes, named):
    with pytest.raises(UserError, match=f"codec.{named}"):
        fit_codec(clips, CodecConfig(**changes))


def test_impossible_sound_is_refused(clips, codec):
    with pytest.raises(UserError, match="silent"):
        fit_codec(np.zeros_like(clips), CONFIG)
    with pytest.raises(UserError, match="frames"):
        fit_codec(clips[:, :-1], CONFIG)
    with pytest.raises(UserError, match="frames"):
        codec.encode(clips[:, :-1])
    with pytest.raises(UserError, match="codes"):
        codec.decode(np.zeros((1, 4, 3), int))
    with pytest.raises(UserError, match="frames"):
        codec.encode(clips[:, :0])


def test_music_keeps_its_waves():
    heard, unheard = (
        np.stack([tune(seed, 0.96)[: 72 * HOP] for seed in seeds]) for seeds in (range(24), range(50, 56))
    )
    codec = fit_codec(heard, CodecConfig(codebook_size=64, num_codebooks=4, steps=20), design=MusicCodec)
    error = unheard - codec.decode(codec.encode(unheard))
    assert 10 * np.log10((unheard**2).sum() / (error**2).sum()) > 1
