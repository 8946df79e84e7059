"""The networks of the 24 kHz EnCodec (Defossez et al. 2022, "High Fidelity Neural Audio Compression").

The encoder is a convolution, four stages (a residual block, then a convolution that strides by 2, 4, 5 or 8 and doubles
the channels), two LSTM layers and a last convolution to latents; the decoder is its mirror image. 320 samples make a
frame. All of it is causal but for the first frames of a stream, see `START_FRAMES`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs.encodec.layers import conv, conv_transpose, elu, lstm

SAMPLE_RATE = 24000
STRIDES = (2, 4, 5, 8)
HOP_LENGTH = 320
CHANNELS = 32
"""Of the first convolution; each stage of the encoder doubles them."""
DEEP_CHANNELS = CHANNELS << len(STRIDES)
LATENT_DIM = 128
KERNEL = 7
"""Width of the first and the last convolutions."""
BLOCK_KERNEL = 3
LSTM_LAYERS = 2
CODEBOOK_SIZE = 1024
MAX_CODEBOOKS = 32
START_FRAMES = KERNEL
"""The first frames are padded by their mirror image: frame 0 depends on frames 0 to 6, by the convolutions between
latents and LSTM. So a stream whose first chunk has 7 frames or more equals the whole clip; after it, any chunk does."""

Params = dict[str, Any]
Memory = dict[str, Any]


class Stream(NamedTuple):
    """What an encoder or a decoder keeps of the past; every array has the batch in front."""

    started: jax.Array
    """bool [B]: False until the first chunk."""
    memory: Memory


def initial_encoder(batch: int) -> Stream:
    """The state of an encoder before the first chunk."""
    widths = [CHANNELS << i for i in range(len(STRIDES))]
    stages = [
        {"block": _zeros(batch, BLOCK_KERNEL - 1, width), "down": _zeros(batch, stride, width)}
        for width, stride in zip(widths, STRIDES, strict=True)
    ]
    memory = {
        "first": _zeros(batch, KERNEL - 1, 1),
        "stages": stages,
        "lstm": [_zeros(batch, 2, DEEP_CHANNELS)] * LSTM_LAYERS,
        "last": _zeros(batch, KERNEL - 1, DEEP_CHANNELS),
    }
    return Stream(jnp.zeros(batch, bool), memory)


def initial_decoder(batch: int, dtype: Any = jnp.float32) -> Stream:
    """The state of a decoder before the first chunk, which computes in `dtype`."""
    widths = [DEEP_CHANNELS >> i for i in range(len(STRIDES))]
    stages = [
        {"up": _zeros(batch, 1, width, dtype), "block": _zeros(batch, BLOCK_KERNEL - 1, width // 2, dtype)}
        for width in widths
    ]
    memory = {
        "first": _zeros(batch, KERNEL - 1, LATENT_DIM, dtype),
        "lstm": [_zeros(batch, 2, DEEP_CHANNELS, dtype)] * LSTM_LAYERS,
        "stages": stages,
        "last": _zeros(batch, KERNEL - 1, CHANNELS, dtype),
    }
    return Stream(jnp.zeros(batch, bool), memory)


def _zeros(batch: int, length: int, width: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.zeros((batch, length, width), dtype)


def embed(params: Params, stream: Stream, waveform: jax.Array) -> tuple[Stream, jax.Array]:
    """The new state, and the latents [B, F, Z] of a waveform [B, F * H] before quantisation."""
    started, memory = stream
    new: Memory = {"stages": []}
    new["first"], x = conv(params["first"], memory["first"], started, waveform[..., None])
    for layers, past, stride in zip(params["stages"], memory["stages"], STRIDES, strict=True):
        block, x = _block(layers["block"], past["block"], started, x)
        down, x = conv(layers["down"], past["down"], started, elu(x), stride)
        new["stages"].append({"block": block, "down": down})
    new["lstm"], x = lstm(params["lstm"], memory["lstm"], x)
    new["last"], latents = conv(params["last"], memory["last"], started, elu(x))
    return Stream(jnp.ones_like(started), new), latents


def synthesize(params: Params, stream: Stream, latents: jax.Array) -> tuple[Stream, jax.Array]:
    """The new state, and the waveform [B, F * H] of latents [B, F, Z]."""
    started, memory = stream
    new: Memory = {"stages": []}
    new["first"], x = conv(params["first"], memory["first"], started, latents)
    new["lstm"], x = lstm(params["lstm"], memory["lstm"], x)
    for layers, past in zip(params["stages"], memory["stages"], strict=True):
        up, x = conv_transpose(layers["up"], past["up"], elu(x))
        block, x = _block(layers["block"], past["block"], started, x)
        new["stages"].append({"up": up, "block": block})
    new["last"], waveform = conv(params["last"], memory["last"], started, elu(x))
    return Stream(jnp.ones_like(started), new), waveform[..., 0]


def _block(layers: Params, past: jax.Array, started: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A convolution to half the channels and a product back, beside a product as the way around."""
    new, h = conv(layers["narrow"], past, started, elu(x))
    h = elu(h) @ layers["widen"]["kernel"] + layers["widen"]["bias"]
    return new, h + x @ layers["around"]["kernel"] + layers["around"]["bias"]


def build_params(weights: dict[str, np.ndarray]) -> Params:
    """`encoder`, `decoder` and `codebooks` [Q, K, Z] in the arrangement of this module's functions.

    `weights` are folded ones, by their published names (see `weights.layout`): convolutions [out, in, K], transposed
    ones [in, out, K], LSTM [4 C, C].
    """
    encoder, decoder = "encoder.layers.", "decoder.layers."
    stages = range(len(STRIDES))
    books = [weights[name] for q in range(MAX_CODEBOOKS) if (name := f"quantizer.layers.{q}.codebook.embed") in weights]
    params: Params = {
        "encoder": {
            "first": _conv_layer(weights, f"{encoder}0"),
            "stages": [
                {
                    "block": _block_layers(weights, f"{encoder}{1 + 3 * i}"),
                    "down": _conv_layer(weights, f"{encoder}{3 + 3 * i}"),
                }
                for i in stages
            ],
            "lstm": _lstm_layers(weights, f"{encoder}13"),
            "last": _conv_layer(weights, f"{encoder}15"),
        },
        "decoder": {
            "first": _conv_layer(weights, f"{decoder}0"),
            "lstm": _lstm_layers(weights, f"{decoder}1"),
            "stages": [
                {
                    "up": _transposed_layer(weights, f"{decoder}{3 + 3 * i}"),
                    "block": _block_layers(weights, f"{decoder}{4 + 3 * i}"),
                }
                for i in stages
            ],
            "last": _conv_layer(weights, f"{decoder}15"),
        },
    }
    on_device: Params = jax.tree.map(jnp.asarray, params | {"codebooks": np.stack(books)})
    return on_device


def _conv_layer(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": weights[f"{name}.conv.weight"].transpose(2, 1, 0), "bias": weights[f"{name}.conv.bias"]}


def _transposed_layer(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    kernel = weights[f"{name}.conv.weight"].transpose(0, 2, 1)
    channels, length, width = kernel.shape
    return {"kernel": kernel.reshape(channels, 2, length // 2, width), "bias": weights[f"{name}.conv.bias"]}


def _block_layers(weights: dict[str, np.ndarray], name: str) -> Params:
    narrow, widen, around = (_conv_layer(weights, f"{name}.{part}") for part in ("block.1", "block.3", "shortcut"))
    widen["kernel"], around["kernel"] = widen["kernel"][0], around["kernel"][0]
    return {"narrow": narrow, "widen": widen, "around": around}


def _lstm_layers(weights: dict[str, np.ndarray], name: str) -> list[dict[str, np.ndarray]]:
    return [
        {
            "kernel": weights[f"{name}.lstm.weight_ih_l{i}"].T,
            "recurrent": weights[f"{name}.lstm.weight_hh_l{i}"].T,
            "bias": weights[f"{name}.lstm.bias_ih_l{i}"] + weights[f"{name}.lstm.bias_hh_l{i}"],
        }
        for i in range(LSTM_LAYERS)
    ]
