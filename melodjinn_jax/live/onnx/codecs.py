"""Decoders of the codecs as ONNX graphs: codes and state in, sound and state out.

Every graph has the input `codes` int32 [F, Q] and the output `sound` float32 [F * H], for any number of frames F, and
carries its past in arrays `past.NAME`, zero before the first frame, which come out as `new_past.NAME`.
"""

from typing import Any

import jax
import numpy as np
import onnx

from melodjinn_jax.codecs.base import Codec
from melodjinn_jax.codecs.encodec import EncodecCodec
from melodjinn_jax.codecs.encodec import model as encodec
from melodjinn_jax.codecs.fitted import HOP_LENGTH, MAX_EXPONENT, SYNTHESIS, TAIL, FittedCodec
from melodjinn_jax.errors import UserError
from melodjinn_jax.live.onnx.graph import END, Graph, Weights


def decoder_graph(codec: Codec, arrays: dict[str, np.ndarray], weights: Weights = "float32") -> onnx.ModelProto:
    """The decoder of a codec whose saved arrays are `arrays`. Raises `UserError` for a kind that cannot be exported."""
    if isinstance(codec, FittedCodec):
        return _fitted_graph(codec.initial_state(1).decoder.latents.shape[1:], arrays, weights)
    if isinstance(codec, EncodecCodec):
        return _encodec_graph(arrays, weights)
    raise UserError(
        f"a codec of the kind {codec.kind!r} cannot be exported: only fitted, fitted_music and encodec_24khz can"
    )


def _lookup(g: Graph, codebooks: np.ndarray) -> str:
    """The latents [F, Z] of the input `codes`, by codebooks [Q, K, Z]."""
    num_codebooks, size, dim = codebooks.shape
    codes = g.input("codes", "int32", ("F", num_codebooks))
    rows = g.op("Add", codes, g.constant(np.arange(num_codebooks) * size, "int32"))
    entries = g.op("Gather", g.constant(codebooks.reshape(-1, dim)), rows)
    return g.op("ReduceSum", entries, g.constant([1], "int64"), keepdims=0)


def _fitted_graph(past: tuple[int, int], arrays: dict[str, np.ndarray], weights: Weights) -> onnx.ModelProto:
    """Both designs of the fitted codec, whose decoders keep latents [context, Z] of the shape `past`."""
    g, context = Graph("decoder", weights), past[0]
    latents = _lookup(g, arrays["codebooks"])
    known = g.op("Concat", g.input("past.latents", "float32", past), latents, axis=0)
    # The slice of age a ends a frames before the end; both bounds count from there, for the number of frames is free.
    seen = [g.slice(known, context - age, -age if age else END, 0) for age in range(context + 1)]
    exponents = _fitted_network(g, arrays, g.op("Concat", *seen, axis=1), past[1] * (context + 1))
    exponents = g.op("Clip", exponents, g.constant(-MAX_EXPONENT), g.constant(MAX_EXPONENT))
    amplitudes = g.op("Mul", g.op("Sinh", exponents), g.constant(0.1))
    if "transform.1.kernel" in arrays:
        amplitudes = g.op("Add", _wave(g, latents, arrays["transform.1.kernel"]), amplitudes)
    sound = g.op("MatMul", amplitudes, g.weight(SYNTHESIS.T * arrays["gain"]))
    body, tail = g.split("Split", sound, g.constant([HOP_LENGTH, TAIL], "int64"), results=2, axis=1)
    tails = g.op("Concat", g.input("past.tail", "float32", (1, TAIL)), tail, axis=0)
    overlap = g.op("Pad", g.slice(tails, 0, -1, 0), g.constant([0, 0, 0, HOP_LENGTH - TAIL], "int64"))
    g.output("sound", g.reshape(g.op("Add", body, overlap), (-1,)), "float32", ("F * H",))
    g.output("new_past.latents", g.slice(known, -context, END, 0), "float32", past)
    g.output("new_past.tail", g.slice(tails, -1, END, 0), "float32", (1, TAIL))
    return g.model()


def _wave(g: Graph, latents: str, kernel: np.ndarray) -> str:
    """The amplitudes [F, H] that music's latents state themselves, by a transform [wave, H]."""
    wave = g.op("MatMul", g.slice(latents, 0, kernel.shape[0], 1), g.weight(kernel))
    power = g.op("ReduceMean", g.op("Mul", wave, wave), g.constant([-1], "int64"))
    return g.op("Mul", wave, g.op("Sqrt", g.op("Add", power, g.constant(1e-12))))


def _fitted_network(g: Graph, arrays: dict[str, np.ndarray], x: str, width: int) -> str:
    """The decoder's network on x [F, width], less what it makes of zero, so that silence stays silence."""
    layers: list[tuple[str, str]] = []
    while f"decoder.{len(layers)}.kernel" in arrays:
        prefix = f"decoder.{len(layers)}"
        layers.append((g.weight(arrays[f"{prefix}.kernel"]), g.constant(arrays[f"{prefix}.bias"])))

    def apply(x: str) -> str:
        for i, (kernel, bias) in enumerate(layers):
            product = g.op("Add", g.op("MatMul", x, kernel), bias)
            if i == len(layers) - 1:
                return product
            active = g.op("Gelu", product, approximate="tanh")
            x = g.op("Add", x, active) if i else active
        return x

    zero = g.constant(np.zeros((1, width)))
    return g.op("Sub", apply(x), apply(zero))


class _EncodecDecoder:
    """Emits EnCodec's decoder, channels first as ONNX convolves: [1, C, T]."""

    def __init__(self, arrays: dict[str, np.ndarray], weights: Weights):
        self.g = Graph("decoder", weights)
        self.params = jax.tree.map(np.asarray, encodec.build_params(arrays))
        self.started = self.g.input("past.started", "float32", (1,))
        self.g.output("new_past.started", self.g.constant([1.0]), "float32", (1,))

    def carry(self, name: str, length: int, channels: int, x: str) -> str:
        """The past [1, C, length] before x, which is remembered for the next chunk."""
        past = self.g.input(f"past.{name}", "float32", (1, channels, length))
        inputs = self.g.op("Concat", past, x, axis=2)
        self.g.output(f"new_past.{name}", self.g.slice(inputs, -length, END, 2), "float32", (1, channels, length))
        return inputs

    def conv(self, name: str, layer: Any, x: str) -> str:
        """A causal convolution with a kernel [T, C, D]; at the start it sees its first inputs mirrored."""
        g, (length, channels, _) = self.g, layer["kernel"].shape
        reach = length - 1
        inputs = self.carry(name, reach, channels, x)
        padded = g.op("Concat", x, g.constant(np.zeros((1, channels, reach))), axis=2)
        mirrored = g.slice(padded, reach, 0, 2, -1)
        at_start = g.op("Concat", mirrored, x, axis=2)
        inputs = g.op("Where", g.op("Greater", self.started, g.constant(0.5)), inputs, at_start)
        return self.convolve(inputs, layer["kernel"], layer["bias"])

    def convolve(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        return self.g.op("Conv", x, self.g.weight(kernel.transpose(2, 1, 0)), self.g.constant(bias))

    def conv_transpose(self, name: str, layer: Any, x: str) -> str:
        """By a stride s with a kernel [C, 2, s, D]; every input sounds in its own s outputs and the next s."""
        g, (channels, _, stride, width) = self.g, layer["kernel"].shape
        inputs = self.carry(name, 1, channels, x)
        kernel = layer["kernel"].reshape(channels, 2 * stride, width).transpose(0, 2, 1)
        y = g.op("ConvTranspose", inputs, g.weight(kernel), g.constant(layer["bias"]), strides=[stride])
        return g.slice(y, stride, -stride, 2)

    def elu(self, x: str) -> str:
        return self.g.op("Elu", x)

    def lstm(self, x: str) -> str:
        """Both layers, with the input added to their output; ONNX orders the gates input, output, forget, cell."""
        g, y = self.g, self.g.op("Transpose", x, perm=[2, 0, 1])
        for i, layer in enumerate(self.params["decoder"]["lstm"]):
            width = layer["recurrent"].shape[0]
            kernel, recurrent, bias = (
                np.concatenate([np.split(layer[name].T, 4)[gate] for gate in (0, 3, 1, 2)])[None]
                for name in ("kernel", "recurrent", "bias")
            )
            pasts = [g.input(f"past.lstm.{i}.{part}", "float32", (1, 1, width)) for part in ("h", "c")]
            bias = np.concatenate([bias, np.zeros_like(bias)], axis=1)
            y, *new = g.split(
                "LSTM",
                y,
                g.weight(kernel),
                g.weight(recurrent),
                g.constant(bias),
                "",
                *pasts,
                results=3,
                hidden_size=width,
            )
            for part, value in zip(("h", "c"), new, strict=True):
                g.output(f"new_past.lstm.{i}.{part}", value, "float32", (1, 1, width))
            y = g.op("Squeeze", y, g.constant([1], "int64"))
        return g.op("Add", x, g.op("Transpose", y, perm=[1, 2, 0]))

    def block(self, name: str, layers: Any, x: str) -> str:
        """A convolution to half the channels and a product back, beside a product as the way around."""
        narrow = self.elu(self.conv(name, layers["narrow"], self.elu(x)))
        widen, around = (
            self.convolve(inputs, layers[part]["kernel"][None], layers[part]["bias"])
            for inputs, part in ((narrow, "widen"), (x, "around"))
        )
        return self.g.op("Add", widen, around)

    def model(self) -> onnx.ModelProto:
        g, params = self.g, self.params["decoder"]
        latents = _lookup(g, self.params["codebooks"])
        x = g.op("Unsqueeze", g.op("Transpose", latents, perm=[1, 0]), g.constant([0], "int64"))
        x = self.lstm(self.conv("first", params["first"], x))
        for i, layers in enumerate(params["stages"]):
            x = self.conv_transpose(f"up.{i}", layers["up"], self.elu(x))
            x = self.block(f"block.{i}", layers["block"], x)
        sound = self.conv("last", params["last"], self.elu(x))
        g.output("sound", g.reshape(sound, (-1,)), "float32", ("F * H",))
        return g.model()


def _encodec_graph(arrays: dict[str, np.ndarray], weights: Weights) -> onnx.ModelProto:
    return _EncodecDecoder(arrays, weights).model()
