"""EnCodec against the `encodec` package with the same weights: the same codes, but for proven ties, and sound."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from encodec_weights import codes_beyond_ties, embed_whole, published_weights

from melodjinn_jax.codecs import EncodecCodec
from melodjinn_jax.codecs.encodec.reference import ReferenceCodec
from melodjinn_jax.codecs.encodec.weights import fold
from melodjinn_jax.data.audio import HOP_LENGTH, load_audio
from melodjinn_jax.errors import UserError

MUSIC = Path(__file__).parents[2] / "shared" / "data" / "music"
FRAMES = 150

installed = pytest.mark.skipif(
    not (find_spec("encodec") and find_spec("torch")),
    reason="the reference is not installed (pip install torch, then the extra encodec)",
)


@pytest.fixture(scope="module")
def tensors():
    return published_weights()


@pytest.fixture(scope="module")
def music():
    """Two seconds out of the middle of every recording, float32 [B, F * H]."""
    files = sorted(file for file in MUSIC.glob("*") if file.suffix in (".wav", ".mp3", ".ogg"))
    if not files:
        pytest.skip(f"there are no recordings at {MUSIC}")
    tracks = [load_audio(file) for file in files]
    length = FRAMES * HOP_LENGTH
    return np.stack([track[len(track) // 2 - length // 2 :][:length] for track in tracks])


@pytest.fixture
def _few_threads():
    import torch

    torch.set_num_threads(1)  # more than the machine has free make it crawl


@installed
@pytest.mark.usefixtures("_few_threads")
@pytest.mark.parametrize("bandwidth", [3.0, 24.0])
def test_recordings_have_the_codes_and_the_sound_of_the_reference(tensors, music, bandwidth):
    codec, reference = EncodecCodec(fold(tensors, "drawn"), bandwidth), ReferenceCodec(tensors, bandwidth)
    codes, expected = codec.encode(music), reference.encode(music)
    assert len(np.unique(codes)) > 100
    latents, others = embed_whole(codec, music), reference.embed(music)
    error = float(np.linalg.norm(latents - others, axis=-1).max())
    # The loudest recording peaks at 8.5.
    assert error < 1e-5 * max(1.0, float(np.linalg.norm(latents, axis=-1).max()))
    assert codes_beyond_ties(codec, latents, codes, expected, error) == []
    assert (codes != expected).any(axis=2).mean() < 1e-3
    np.testing.assert_allclose(codec.decode(expected), reference.decode(expected), atol=1e-4)


@installed
@pytest.mark.usefixtures("_few_threads")
@pytest.mark.parametrize("frames", [1, 6, 8])
def test_clips_shorter_than_the_mirror_too(tensors, rng, frames):
    codec, reference = EncodecCodec(fold(tensors, "drawn"), 3.0), ReferenceCodec(tensors, 3.0)
    waveform = (0.2 * rng.normal(size=(2, frames * HOP_LENGTH))).astype(np.float32)
    codes, expected = codec.encode(waveform), reference.encode(waveform)
    assert codes_beyond_ties(codec, embed_whole(codec, waveform), codes, expected, 1e-5) == []
    np.testing.assert_allclose(codec.decode(expected), reference.decode(expected), atol=1e-4)


@pytest.mark.skipif(bool(find_spec("encodec")), reason="the reference is installed")
def test_without_the_reference_one_sentence_says_so(tensors):
    with pytest.raises(UserError, match="the reference EnCodec is not installed"):
        ReferenceCodec(tensors, 3.0)
