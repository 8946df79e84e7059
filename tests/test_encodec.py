"""EnCodec without the reference: causal, the same in a stream, whole on disk, and picky about its weights."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from encodec_weights import LAYOUT, codes_beyond_ties, embed_whole, old_spelling, published_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from melodjinn_jax.codecs import EncodecCodec, load_codec
from melodjinn_jax.codecs.base import ARRAYS_FILE
from melodjinn_jax.codecs.encodec import BANDWIDTHS
from melodjinn_jax.codecs.encodec.weights import HUB_FILE, fold, layout, read_weights
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.run import IngestOptions, ingest
from melodjinn_jax.ingest.track import Plan, Track

FRAMES, HOP, START = 24, 320, 7
UNUSED = tuple(name for name in LAYOUT if name.endswith((".inited", ".cluster_size", ".embed_avg")))


@pytest.fixture(scope="module")
def tensors():
    return published_weights()


@pytest.fixture(scope="module")
def weights(tensors):
    return fold(tensors, "drawn")


@pytest.fixture(scope="module")
def codec(weights):
    return EncodecCodec(weights, 6.0)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(1)
    levels = np.repeat(10 ** rng.uniform(-2, -0.5, (2, FRAMES)), HOP, axis=1)
    return (levels * rng.normal(size=levels.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def codes(codec, clips):
    return codec.encode(clips)


def test_every_bandwidth_has_its_codebooks(weights):
    for bandwidth, num_codebooks in BANDWIDTHS.items():
        codec = EncodecCodec(weights, bandwidth)
        assert codec.num_codebooks == num_codebooks
        assert num_codebooks * 10 * 75 == bandwidth * 1000
        assert codec.sample_rate / codec.hop_length == 75


def test_a_coarser_bandwidth_has_the_first_codes_of_a_finer_one(weights, codec, clips, codes):
    finest = EncodecCodec(weights, 24.0).encode(clips)
    assert finest.shape == (2, FRAMES, 32)
    assert finest.dtype == np.int32
    assert finest.min() >= 0
    assert finest.max() < 1024
    assert codes.shape == (2, FRAMES, 8)
    assert codes_beyond_ties(codec, embed_whole(codec, clips), codes, finest[..., :8], 1e-5) == []


def test_decoding_gives_sound_of_whole_frames(codec, codes):
    waveform = codec.decode(codes)
    assert waveform.shape == (2, FRAMES * HOP)
    assert waveform.dtype == np.float32
    assert 1e-3 < waveform.std() < 10


def test_a_prefix_has_the_codes_and_the_sound_of_the_whole(codec, clips, codes):
    prefix = codec.encode(clips[:, : 8 * HOP])
    latents = embed_whole(codec, clips)
    assert codes_beyond_ties(codec, latents, codes[:, :8], prefix, 1e-5) == []
    np.testing.assert_allclose(codec.decode(codes[:, :8]), codec.decode(codes)[:, : 8 * HOP], atol=1e-5)


def test_only_the_start_looks_ahead_and_no_further_than_its_mirror(codec, codes, clips):
    def first_frame(changed: int) -> tuple[np.ndarray, np.ndarray]:
        other_clips, other_codes = clips.copy(), codes.copy()
        other_clips[:, changed * HOP :] = 0.3
        other_codes[:, changed:] = 7
        return embed_whole(codec, other_clips)[:, 0], codec.decode(other_codes)[:, :HOP]

    latents, sound = embed_whole(codec, clips)[:, 0], codec.decode(codes)[:, :HOP]
    for frame, looks in ((START - 1, True), (START, False)):
        other_latents, other_sound = first_frame(frame)
        assert (np.abs(other_latents - latents).max() > 1e-4) == looks
        assert (np.abs(other_sound - sound).max() > 1e-4) == looks


@pytest.mark.parametrize("lengths", [(7, *[1] * 17), (8, 8, 8), (7, 8, 1, 8)])
def test_a_stream_of_chunks_equals_the_whole_clip(codec, clips, codes, lengths):
    state, start, heard, sounded = codec.initial_state(2), 0, [], []
    for length in lengths:
        state, chunk = codec.encode_chunk(state, clips[:, start * HOP : (start + length) * HOP])
        heard.append(chunk)
        state, chunk = codec.decode_chunk(state, codes[:, start : start + length])
        sounded.append(chunk)
        start += length
    streamed = np.concatenate(heard, axis=1)
    assert codes_beyond_ties(codec, embed_whole(codec, clips), codes, streamed, 1e-5) == []
    np.testing.assert_allclose(np.concatenate(sounded, axis=1), codec.decode(codes), atol=1e-5)


def test_a_long_clip_in_chunks_equals_one_call(codec, clips, codes, monkeypatch):
    sound = codec.decode(codes)
    monkeypatch.setattr(codec, "chunk_frames", 8)
    chunked = codec.encode(clips[:, : 21 * HOP])
    assert codes_beyond_ties(codec, embed_whole(codec, clips), codes[:, :21], chunked, 1e-5) == []
    np.testing.assert_allclose(codec.decode(codes[:, :21]), sound[:, : 21 * HOP], atol=1e-5)


def test_decoding_in_bfloat16_sounds_alike(weights, codec, codes):
    exact, coarse = codec.decode(codes), EncodecCodec(weights, 6.0, jnp.bfloat16).decode(codes)
    assert coarse.dtype == np.float32
    assert not np.array_equal(exact, coarse)
    assert 10 * np.log10((exact**2).sum() / ((exact - coarse) ** 2).sum()) > 25


def test_save_and_load_round_trip(weights, codec, clips, codes, tmp_path):
    codec.save(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")
    assert (loaded.kind, loaded.digest, loaded.num_codebooks) == ("encodec_24khz", codec.digest, 8)
    np.testing.assert_array_equal(loaded.encode(clips), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
    assert EncodecCodec(weights, 3.0).digest != codec.digest
    content = bytearray((tmp_path / "codec" / ARRAYS_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "codec" / ARRAYS_FILE).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_codec(tmp_path / "codec")


SHARDED = """
import sys
import jax, numpy as np
from melodjinn_jax.codecs import load_codec

codec = load_codec(sys.argv[1])
clips, whole = np.load(sys.argv[2]), np.load(sys.argv[3])
rows = jax.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("data",)), jax.P("data"))
state, codes = codec.encode_chunk(jax.device_put(codec.initial_state(2), rows), jax.device_put(clips, rows))
state, sound = codec.decode_chunk(state, codes)
for result in [codes, sound, *jax.tree.leaves((state.encoder.memory, state.decoder.memory))]:
    assert len(result.sharding.device_set) == 2 and not result.sharding.is_fully_replicated, result.sharding
np.testing.assert_array_equal(codes, whole)
np.testing.assert_allclose(sound, codec.decode(whole), atol=1e-5)
assert not {"torch", "tensorflow", "transformers"} & set(sys.modules)
"""


def test_two_devices_share_a_batch_and_nothing_imports_torch(codec, clips, codes, tmp_path):
    codec.save(tmp_path)
    np.save(tmp_path / "clips.npy", clips)
    np.save(tmp_path / "codes.npy", codes)
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    arguments = [str(tmp_path), str(tmp_path / "clips.npy"), str(tmp_path / "codes.npy")]
    command = [sys.executable, "-c", SHARDED, *arguments]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_loader_takes_exactly_the_published_names(tensors, weights):
    assert weights.keys() == layout().keys()
    assert {name: weights[name].shape for name in weights} == layout()
    needed = {name: tensor for name, tensor in tensors.items() if name not in UNUSED}
    assert fold(needed, "drawn").keys() == weights.keys()
    assert len(UNUSED) == 3 * 32


def test_the_layout_is_that_of_the_transformers_class(tmp_path):
    pytest.importorskip("transformers", reason="the transformers library, whose layout this pins, is not installed")
    pytest.importorskip("torch", reason="torch, which its class needs, is not installed")
    from tools.encodec_layout import layout_of_transformers
    from transformers import EncodecConfig, EncodecModel

    assert layout_of_transformers() == LAYOUT
    EncodecModel(EncodecConfig()).save_pretrained(tmp_path)
    read = read_weights(tmp_path / HUB_FILE)
    assert {name: read[name].shape for name in read} == layout()


def test_all_spellings_of_a_file_give_the_same_codec(tensors, weights, tmp_path):
    save_file(tensors, tmp_path / "new.safetensors")
    save_file(old_spelling(tensors), tmp_path / "old.safetensors")
    save_file(weights, tmp_path / "folded.safetensors")
    assert load_file(tmp_path / "old.safetensors").keys() != tensors.keys()
    digests = {EncodecCodec.from_published(3.0, tmp_path / f"{name}.safetensors").digest for name in ("new", "old")}
    assert digests == {EncodecCodec.from_published(3.0, tmp_path / "folded.safetensors").digest}


@given(gain=st.floats(0.01, 100), scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_folded_filter_has_the_length_of_its_gain(tensors, gain, scale, seed):
    name = "decoder.layers.3.conv"  # a transposed one: its filters lie along the inputs
    rng = np.random.default_rng(seed)
    shape = tuple(LAYOUT[f"{name}.parametrizations.weight.original1"])
    direction = (scale * rng.normal(size=shape)).astype(np.float32)
    gains = np.full((shape[0], 1, 1), gain, np.float32)
    changed = tensors | {
        f"{name}.parametrizations.weight.original0": gains,
        f"{name}.parametrizations.weight.original1": direction,
    }
    folded = fold(changed, "drawn")[f"{name}.weight"]
    np.testing.assert_allclose(np.linalg.norm(folded.reshape(shape[0], -1), axis=1), gain, rtol=1e-5)
    cosines = (folded * direction).sum(axis=(1, 2)) / (gain * np.linalg.norm(direction.reshape(shape[0], -1), axis=1))
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)


@given(
    name=st.sampled_from([name for name in LAYOUT if name not in UNUSED]), harm=st.sampled_from(["no", "odd", "NaN"])
)
@settings(max_examples=60)
def test_a_missing_or_odd_tensor_is_named(tensors, name, harm):
    changed = dict(tensors)
    if harm == "no":
        del changed[name]
    elif harm == "odd":
        changed[name] = np.concatenate([tensors[name], tensors[name]], axis=-1)
    else:
        changed[name] = np.full_like(tensors[name], np.nan)
    with pytest.raises(UserError, match=r"my\.safetensors does not hold") as caught:
        fold(changed, "my.safetensors")
    assert name.split(".parametrizations")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_weights_of_another_model_are_refused(tensors):
    with pytest.raises(UserError, match=r"it holds classifier\.weight"):
        fold(tensors | {"classifier.weight": np.zeros(3, np.float32)}, "my.safetensors")
    with pytest.raises(UserError, match=r"encoder\.layers\.0\.conv\.weight is missing"):
        fold({}, "my.safetensors")


@given(st.data())
@settings(max_examples=100)
def test_a_damaged_file_is_refused(tmp_path_factory, data):
    content = bytearray(save({"encoder.layers.0.conv.bias": np.arange(32, dtype=np.float32)}))
    for _ in range(data.draw(st.integers(0, 4), "flips")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / HUB_FILE
    file.write_bytes(content[: data.draw(st.integers(0, len(content)), "length")])
    with pytest.raises(UserError) as caught:
        read_weights(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_had_are_explained(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nothing\.safetensors is not a file"):
        read_weights(tmp_path / "nothing.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be downloaded.*--codec-weights FILE"):
        EncodecCodec.from_published(3.0)


def test_what_it_cannot_do_is_refused(weights, codec, clips):
    with pytest.raises(UserError, match=r"bandwidth 5 kbps: EnCodec has 1\.5, 3, 6, 12, 24"):
        EncodecCodec(weights, 5)
    with pytest.raises(UserError, match="whole frames"):
        codec.encode(clips[:, :-1])
    with pytest.raises(UserError, match="codes"):
        codec.decode(np.zeros((1, 4, 3), int))


def test_a_dataset_of_chunks_too_short_for_the_stream_is_refused_before_any_decoding(tensors, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    plan = Plan("here", (Track("a", "a.wav", None, ""),))
    options = IngestOptions(codec="encodec_24khz", codec_weights=str(file), chunk_frames=START - 1)
    with pytest.raises(UserError, match=rf"--chunk-frames {START - 1}: .* needs at least {START}"):
        ingest(plan, LocalFolder(tmp_path), tmp_path / "dataset", options, progress=lambda line: None)
