"""The dynamics model, in either layout, as one ONNX graph: a whole frame, every codebook in turn, sampled inside.

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
    """What all layers share at one step."""

    cos: str
    sin: str
    ring: str
    """[W]: 0 for the slots in sight, a large negative number for the others; empty without a ring."""


class _Stack:
    """Emits the steps that a transformer takes within a frame.

    The tails are the keys and values of the frame's steps so far, one list a layer. With a `window`, in steps, the
    layers also see the ring of the frames before; without, every frame begins anew.
    """

    def __init__(self, graph: Graph, params: Any, num_heads: int, window: int = 0):
        self.graph, self.num_heads, self.window = graph, num_heads, window
        num_layers, dim = np.shape(params["blocks"]["attention_norm"]["scale"])
        self.head_dim = dim // num_heads
        self.layers = [self._layer(params["blocks"], i) for i in range(num_layers)]
        self.final_norm = graph.constant(params["norm"]["scale"])
        self.key_tails: list[list[str]] = [[] for _ in range(num_layers)]
        self.value_tails: list[list[str]] = [[] for _ in range(num_layers)]

    def _layer(self, blocks: Any, i: int) -> dict[str, str]:
        """The parameters of layer i as constants, and its ring; the queries' scale holds the softmax's."""
        g, attention = self.graph, blocks["attention"]
        query_scale = np.asarray(attention["query_norm"]["scale"][i]) / np.sqrt(self.head_dim)
        head_scales = np.stack([query_scale, np.asarray(attention["key_norm"]["scale"][i])])
        matrices = {
            "qkv": attention["qkv"]["kernel"],
            "out": attention["out"]["kernel"],
            "up": blocks["up"]["kernel"],
            "down": blocks["down"]["kernel"],
        }
        layer = {name: g.weight(kernel[i]) for name, kernel in matrices.items()} | {
            "attention_norm": g.constant(blocks["attention_norm"]["scale"][i]),
            "mlp_norm": g.constant(blocks["mlp_norm"]["scale"][i]),
            "head_norm": g.constant(head_scales[:, None]),
            "sink": g.constant(np.asarray(attention["sink"][i])[:, None, None]),
        }
        if self.window:
            shape = (self.num_heads, self.window, self.head_dim)
            layer |= {kind: g.input(f"{kind}.{i}", "float32", shape) for kind in ("keys", "values")}
        return layer

    def norm(self, x: str, scale: str) -> str:
        return self.graph.op("RMSNormalization", x, scale, axis=-1, epsilon=_EPSILON)

    def masks(self, before: str, step: int) -> _Masks:
        """Of the frame's step number `step`, in a stream that has taken `before` steps before the frame."""
        g = self.graph
        here = g.op("Add", before, g.constant(step, "int32"))
        on_circle = g.op("Mod", here, g.constant(ROPE_CIRCLE, "int32"))
        turns = g.op("Mul", on_circle, g.constant(rotary_turns(self.head_dim), "int32"))
        turns = g.op("Cast", g.op("Mod", turns, g.constant(ROPE_CIRCLE, "int32")), to=onnx.TensorProto.FLOAT)
        angles = g.op("Mul", turns, g.constant(2 * np.pi / ROPE_CIRCLE))
        # Halves side by side: x cos + swapped x sin, the sine of the first half negative.
        cos, sin = g.op("Cos", angles), g.op("Sin", angles)
        both = g.op("Concat", cos, cos, axis=-1), g.op("Concat", g.op("Neg", sin), sin, axis=-1)
        return _Masks(*both, self._in_sight(before, step) if self.window else "")

    def _in_sight(self, before: str, step: int) -> str:
        """[W]: a slot was written 1 to W steps before the frame, if the stream is as old as that."""
        g = self.graph
        since = g.op("Sub", before, g.constant(np.arange(self.window) + 1, "int32"))
        age = g.op("Add", g.op("Mod", since, g.constant(self.window, "int32")), g.constant(1, "int32"))
        oldest = g.op("Min", before, g.constant(self.window - 1 - step, "int32"))
        return g.op("Where", g.op("LessOrEqual", age, oldest), g.constant(0.0), g.constant(_NEVER))

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
        length = len(self.key_tails[i])
        parts = [g.reshape(g.op("MatMul", tail_keys, query), (A, 1, length)), layer["sink"]]
        if self.window:
            ring = g.reshape(g.op("MatMul", layer["keys"], query), (A, 1, self.window))
            parts.insert(0, g.op("Add", ring, masks.ring))
        sizes = g.constant([self.window, length, 1][-len(parts) :], "int64")
        softmax = g.op("Softmax", g.op("Concat", *parts, axis=2), axis=-1)
        *on_ring, on_tail, _ = g.split("Split", softmax, sizes, results=len(parts), axis=2)
        # The sink has no value: it only takes weight away.
        mixed = g.op("MatMul", on_tail, tail_values)
        if on_ring:
            mixed = g.op("Add", mixed, g.op("MatMul", on_ring[0], layer["values"]))
        return g.op("MatMul", g.reshape(mixed, (1, A * P)), layer["out"])

    def mlp(self, x: str, i: int) -> str:
        g, layer = self.graph, self.layers[i]
        up = g.op("Relu", g.op("MatMul", x, layer["up"]))
        return g.op("MatMul", g.op("Mul", up, up), layer["down"])

    def block(self, x: str, i: int, masks: _Masks) -> str:
        g, layer = self.graph, self.layers[i]
        x = g.op("Add", x, self.attention(self.norm(x, layer["attention_norm"]), i, masks))
        return g.op("Add", x, self.mlp(self.norm(x, layer["mlp_norm"]), i))

    def step(self, x: str, masks: _Masks, steering: str = "", steered_block: int = 0) -> str:
        """[1, D] to [1, D], normalised at the end; what steers it, if anything does, is added before one block."""
        for i in range(len(self.layers)):
            if steering and i == steered_block:
                x = self.graph.op("Add", x, steering)
            x = self.block(x, i, masks)
        return self.norm(x, self.final_norm)


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
    g, Q, K = Graph("frame", weights), num_codebooks, codebook_size
    per_frame = Q if config.layout == "flat" else 1
    stack = _Stack(g, params["transformer"], config.num_heads, config.window * per_frame)
    previous, position = g.input("previous", "int32", (Q,)), g.input("position", "int32", ())
    sampler = _Sampler(g, params["unembed"], Q, K)
    emit = _emit_flat if config.layout == "flat" else _emit_depth
    emit(stack, params, config, sampler, previous, position)
    g.output("codes", g.op("Concat", *sampler.tokens, axis=0), "int32", (Q,))
    g.output("logits", g.op("Concat", *sampler.logits, axis=0), "float32", (Q, K))
    for name, layers in (("new_keys", stack.key_tails), ("new_values", stack.value_tails)):
        for i, tail in enumerate(layers):
            joined = g.op("Concat", *tail, axis=1)
            g.output(f"{name}.{i}", joined, "float32", (stack.num_heads, per_frame, stack.head_dim))
    return g.model()


def _emit_flat(stack: _Stack, params: Any, config: DynamicsConfig, sampler: "_Sampler", previous: str, position: str):
    """One step of the transformer for every token."""
    g, Q = stack.graph, sampler.num_codebooks
    table, action = g.weight(params["embed_token"]["embedding"]), _action(g, params)
    token = g.op("Gather", previous, g.constant(Q - 1, "int64"))
    steps_before = g.op("Mul", position, g.constant(Q, "int32"))
    for q in range(Q):
        codebook = g.constant(params["embed_codebook"]["embedding"][q : q + 1])
        x = g.op("Add", g.op("Gather", table, token), codebook)
        hidden = stack.step(x, stack.masks(steps_before, q), action, config.action_block)
        token = sampler.choose(hidden, q)


def _emit_depth(stack: _Stack, params: Any, config: DynamicsConfig, sampler: "_Sampler", previous: str, position: str):
    """One step of the transformer for the frame, and one of the small one for every token."""
    g, Q, rows = stack.graph, sampler.num_codebooks, sampler.codebook_size + 2
    small = _Stack(g, params["depth"], config.depth_dim * config.num_heads // config.dim)
    table, to_depth = g.weight(params["embed_token"]["embedding"]), g.weight(params["to_depth"]["kernel"])
    last = g.op("Gather", table, g.op("Add", previous, g.constant(np.arange(Q) * rows, "int32")))
    x = g.op("ReduceSum", last, g.constant([0], "int64"), keepdims=1)
    frame = stack.step(x, stack.masks(position, 0), _action(g, params), config.action_block)
    before = g.op("Gather", table, g.constant(sampler.codebook_size, "int32"))
    for q in range(Q):
        codebook = g.constant(params["embed_codebook"]["embedding"][q])
        x = g.op("MatMul", g.op("Add", g.op("Add", frame, before), codebook), to_depth)
        token = sampler.choose(small.step(x, small.masks(g.constant(0, "int32"), q)), q)
        before = g.op("Gather", table, g.op("Add", token, g.constant(q * rows, "int32")))


def _action(g: Graph, params: Any) -> str:
    """The embedding [1, D] of the input `action`, given with the input `strength`; the null action is the last."""
    table = np.asarray(params["embed_action"]["embedding"])
    action, strength = g.input("action", "int32", (1,)), g.input("strength", "float32", ())
    null = g.constant(table[-1:])
    effect = g.op("Sub", g.op("Gather", g.constant(table), action), null)
    embedded = g.op("Add", null, g.op("Mul", effect, strength))
    if "embed_press" not in params:
        return embedded
    press = g.op("Gather", g.constant(np.asarray(params["embed_press"]["embedding"])), action)
    beyond = g.op("Relu", g.op("Sub", strength, g.constant(1, "float32")))
    return g.op("Add", embedded, g.op("Mul", press, beyond))


class _Sampler:
    """Emits the choice of every token; keeps the tokens [1] and the logits [1, K]."""

    def __init__(self, g: Graph, unembed: Any, num_codebooks: int, codebook_size: int):
        self.graph, self.num_codebooks, self.codebook_size = g, num_codebooks, codebook_size
        self._noise = g.input("noise", "float32", (num_codebooks, codebook_size))
        self._top_k, self._given = g.input("top_k", "int64", (1,)), g.input("given", "int32", (num_codebooks,))
        self._kernel, self._bias = g.weight(unembed["kernel"]), g.constant(unembed["bias"])
        self.tokens: list[str] = []
        self.logits: list[str] = []

    def choose(self, hidden: str, codebook: int) -> str:
        """The token, int32 [], of the last layer's output [1, D]: what is given, unless it is negative."""
        g = self.graph
        logits = g.op("Add", g.op("MatMul", hidden, self._kernel), self._bias)
        best, _ = g.split("TopK", logits, self._top_k, results=2, axis=-1)
        allowed = g.op("Where", g.op("Less", logits, g.slice(best, -1, END, 1)), g.constant(_NEVER), logits)
        noisy = g.op("Add", allowed, g.slice(self._noise, codebook, codebook + 1, 0))
        drawn = g.op("ArgMax", g.reshape(noisy, (-1,)), axis=0, keepdims=0)
        drawn = g.op("Cast", drawn, to=onnx.TensorProto.INT32)
        given = g.op("Gather", self._given, g.constant(codebook, "int64"))
        token = g.op("Where", g.op("Less", given, g.constant(0, "int32")), drawn, given)
        self.logits.append(logits)
        self.tokens.append(g.reshape(token, (1,)))
        return token
