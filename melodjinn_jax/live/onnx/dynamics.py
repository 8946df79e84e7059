"""The dynamics model as one ONNX graph: a whole frame, every codebook in turn, sampled inside.

The rings stay with the caller, who writes the new keys and values into them: the graph takes the rings as they were
before the frame and gives what the frame adds. All that a caller must know of them stands in the shapes. Sampling is
the Gumbel trick: the likeliest token of the logits plus noise, the noise being the temperature times Gumbel numbers, so
that no noise is greedy.

Letters: A heads, P head width, W ring slots (tokens), Q codebooks, K codebook size, D width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from melodjinn_jax.config import DynamicsConfig
from melodjinn_jax.live.onnx.graph import END, Graph, Weights
from melodjinn_jax.models.transformer import ROPE_CIRCLE, rotary_turns

_EPSILON = 1e-6
_NEVER = -1e30


@dataclass(frozen=True)
class _Masks:
    """What all layers share at one token of the frame."""

    cos: str
    sin: str
    ring: str
    """[W]: 0 for the slots in sight, a large negative number for the others."""


class _FrameGraph:
    """Emits the frame's nodes; the tails are the keys and values of this frame's tokens so far, one list a layer."""

    def __init__(self, config: DynamicsConfig, params: Any, num_codebooks: int, weights: Weights):
        self.graph = Graph("frame", weights)
        self.num_heads, self.head_dim = config.num_heads, config.dim // config.num_heads
        self.window = config.window * num_codebooks
        self.num_layers, self.num_codebooks = config.num_layers, num_codebooks
        blocks = params["transformer"]["blocks"]
        self.layers = [self._layer(blocks, i) for i in range(config.num_layers)]
        self.key_tails: list[list[str]] = [[] for _ in range(config.num_layers)]
        self.value_tails: list[list[str]] = [[] for _ in range(config.num_layers)]

    def _layer(self, blocks: Any, i: int) -> dict[str, str]:
        """The parameters of layer i as constants; the queries' scale holds the softmax's."""
        g, attention = self.graph, blocks["attention"]
        query_scale = np.asarray(attention["query_norm"]["scale"][i]) / np.sqrt(self.head_dim)
        head_scales = np.stack([query_scale, np.asarray(attention["key_norm"]["scale"][i])])
        matrices = {
            "qkv": attention["qkv"]["kernel"],
            "out": attention["out"]["kernel"],
            "up": blocks["up"]["kernel"],
            "down": blocks["down"]["kernel"],
        }
        return {name: g.weight(kernel[i]) for name, kernel in matrices.items()} | {
            "attention_norm": g.constant(blocks["attention_norm"]["scale"][i]),
            "mlp_norm": g.constant(blocks["mlp_norm"]["scale"][i]),
            "head_norm": g.constant(head_scales[:, None]),
            "sink": g.constant(np.asarray(attention["sink"][i])[:, None, None]),
            "keys": g.input(f"keys.{i}", "float32", (self.num_heads, self.window, self.head_dim)),
            "values": g.input(f"values.{i}", "float32", (self.num_heads, self.window, self.head_dim)),
        }

    def norm(self, x: str, scale: str) -> str:
        return self.graph.op("RMSNormalization", x, scale, axis=-1, epsilon=_EPSILON)

    def masks(self, position: str, token: int) -> _Masks:
        """Of the frame's token number `token`, in a stream that has played `position` tokens before the frame."""
        g = self.graph
        here = g.op("Add", position, g.constant(token, "int32"))
        on_circle = g.op("Mod", here, g.constant(ROPE_CIRCLE, "int32"))
        turns = g.op("Mul", on_circle, g.constant(rotary_turns(self.head_dim), "int32"))
        turns = g.op("Cast", g.op("Mod", turns, g.constant(ROPE_CIRCLE, "int32")), to=onnx.TensorProto.FLOAT)
        angles = g.op("Mul", turns, g.constant(2 * np.pi / ROPE_CIRCLE))
        # Halves side by side: x cos + swapped x sin, the sine of the first half negative.
        cos, sin = g.op("Cos", angles), g.op("Sin", angles)
        # A slot was written 1 to W tokens before the frame, if the stream is as old as that.
        before = g.op("Sub", position, g.constant(np.arange(self.window) + 1, "int32"))
        age = g.op("Add", g.op("Mod", before, g.constant(self.window, "int32")), g.constant(1, "int32"))
        oldest = g.op("Min", position, g.constant(self.window - 1 - token, "int32"))
        ring = g.op("Where", g.op("LessOrEqual", age, oldest), g.constant(0.0), g.constant(_NEVER))
        return _Masks(g.op("Concat", cos, cos, axis=-1), g.op("Concat", g.op("Neg", sin), sin, axis=-1), ring)

    def rotate(self, x: str, masks: _Masks) -> str:
        g = self.graph
        first, second = g.split("Split", x, results=2, axis=-1, num_outputs=2)
        swapped = g.op("Concat", second, first, axis=-1)
        return g.op("Add", g.op("Mul", x, masks.cos), g.op("Mul", swapped, masks.sin))

    def attention(self, x: str, i: int, masks: _Masks) -> str:
        """[1, D] to [1, D] over the ring, the frame's tokens so far and the sink."""
        g, layer, A, P = self.graph, self.layers[i], self.num_heads, self.head_dim
        heads = g.reshape(g.op("MatMul", x, layer["qkv"]), (3, A, P))
        queries_keys, value = g.split("Split", heads, g.constant([2, 1], "int64"), results=2, axis=0)
        normal = g.op("Mul", self.norm(queries_keys, g.constant(np.ones(P))), layer["head_norm"])
        query, key = g.split("Split", self.rotate(normal, masks), results=2, axis=0, num_outputs=2)
        self.key_tails[i].append(g.reshape(key, (A, 1, P)))
        self.value_tails[i].append(g.reshape(value, (A, 1, P)))
        tail_keys = g.op("Concat", *self.key_tails[i], axis=1)
        tail_values = g.op("Concat", *self.value_tails[i], axis=1)
        query = g.reshape(query, (A, P, 1))
        ring = g.reshape(g.op("MatMul", layer["keys"], query), (A, 1, self.window))
        tail_length = len(self.key_tails[i])
        tail = g.reshape(g.op("MatMul", tail_keys, query), (A, 1, tail_length))
        # The sink has no value: it only takes weight away.
        logits = g.op("Concat", g.op("Add", ring, masks.ring), tail, layer["sink"], axis=2)
        sizes = g.constant([self.window, tail_length, 1], "int64")
        on_ring, on_tail, _ = g.split("Split", g.op("Softmax", logits, axis=-1), sizes, results=3, axis=2)
        mixed = g.op("Add", g.op("MatMul", on_ring, layer["values"]), g.op("MatMul", on_tail, tail_values))
        return g.op("MatMul", g.reshape(mixed, (1, A * P)), layer["out"])

    def mlp(self, x: str, i: int) -> str:
        g, layer = self.graph, self.layers[i]
        up = g.op("Relu", g.op("MatMul", x, layer["up"]))
        return g.op("MatMul", g.op("Mul", up, up), layer["down"])

    def block(self, x: str, i: int, masks: _Masks) -> str:
        g, layer = self.graph, self.layers[i]
        x = g.op("Add", x, self.attention(self.norm(x, layer["attention_norm"]), i, masks))
        return g.op("Add", x, self.mlp(self.norm(x, layer["mlp_norm"]), i))

    def action(self, params: Any) -> str:
        """The embedding [1, D] of the input `action`, given with the input `strength`; the null action is the last."""
        g, table = self.graph, np.asarray(params["embed_action"]["embedding"])
        action, strength = g.input("action", "int32", (1,)), g.input("strength", "float32", ())
        null = g.constant(table[-1:])
        effect = g.op("Sub", g.op("Gather", g.constant(table), action), null)
        return g.op("Add", null, g.op("Mul", effect, strength))


def frame_graph(
    config: DynamicsConfig, params: Any, *, num_codebooks: int, codebook_size: int, weights: Weights = "float32"
) -> onnx.ModelProto:
    """The ONNX graph of one frame.

    Inputs: `previous` int32 [Q], the codes of the frame before (K where there is none); `position` int32 [], frames
    played before; `action` int32 [1] and `strength` float []; `noise` float [Q, K]; `top_k` int64 [1] from 1 to K;
    `given` int32 [Q], codes to take instead of sampling, or -1; `keys.i` and `values.i` float [A, W, P], the ring of
    layer i.
    Outputs: `codes` int32 [Q]; `logits` float [Q, K]; `new_keys.i` and `new_values.i` float [A, N, P], the frame's N
    entries for the ring, entry n of frame f for slot (f N + n) mod W.

    Args:
      config: of the dynamics model.
      params: of the dynamics model, nested dicts.
      num_codebooks: Q.
      codebook_size: K.
      weights: how matrices are stored.
    """
    frame = _FrameGraph(config, params, num_codebooks, weights)
    g, Q, K = frame.graph, num_codebooks, codebook_size
    token = g.op("Gather", g.input("previous", "int32", (Q,)), g.constant(Q - 1, "int64"))
    position = g.op("Mul", g.input("position", "int32", ()), g.constant(Q, "int32"))
    noise, given = g.input("noise", "float32", (Q, K)), g.input("given", "int32", (Q,))
    top_k = g.input("top_k", "int64", (1,))
    token_table = g.weight(params["embed_token"]["embedding"])
    action = frame.action(params)
    final_norm = g.constant(params["transformer"]["norm"]["scale"])
    unembed, bias = g.weight(params["unembed"]["kernel"]), g.constant(params["unembed"]["bias"])
    tokens, all_logits = [], []
    for q in range(Q):
        here = g.op("Gather", token_table, token)
        x = g.op("Add", g.op("Add", action, here), g.constant(params["embed_codebook"]["embedding"][q]))
        masks = frame.masks(position, q)
        for i in range(config.num_layers):
            x = frame.block(x, i, masks)
        logits = g.op("Add", g.op("MatMul", frame.norm(x, final_norm), unembed), bias)
        token = _choose(g, logits, g.slice(noise, q, q + 1, 0), top_k, g.op("Gather", given, g.constant(q, "int64")))
        tokens.append(g.reshape(token, (1,)))
        all_logits.append(logits)
    g.output("codes", g.op("Concat", *tokens, axis=0), "int32", (Q,))
    g.output("logits", g.op("Concat", *all_logits, axis=0), "float32", (Q, K))
    for name, layers in (("new_keys", frame.key_tails), ("new_values", frame.value_tails)):
        for i, tail in enumerate(layers):
            joined = g.op("Concat", *tail, axis=1)
            g.output(f"{name}.{i}", joined, "float32", (frame.num_heads, Q, frame.head_dim))
    return g.model()


def _choose(g: Graph, logits: str, noise: str, top_k: str, given: str) -> str:
    """The token, int32 [], of logits [1, K]: `given` unless it is negative."""
    best, _ = g.split("TopK", logits, top_k, results=2, axis=-1)
    floor = g.slice(best, -1, END, 1)
    allowed = g.op("Where", g.op("Less", logits, floor), g.constant(_NEVER), logits)
    drawn = g.op("ArgMax", g.reshape(g.op("Add", allowed, noise), (-1,)), axis=0, keepdims=0)
    drawn = g.op("Cast", drawn, to=onnx.TensorProto.INT32)
    return g.op("Where", g.op("Less", given, g.constant(0, "int32")), drawn, given)
