"""The dynamics model: an autoregressive transformer over codec tokens, steered by actions.

Every token is predicted from all tokens before it, frame by frame and codebook by codebook, and from the actions up to
the one that governs its own frame, whose embedding is added before block `action_block` of the transformer. Two layouts
do this. *Flat*: the tokens are one sequence of one transformer, whose input at a position is the token before it and
the index of the codebook to predict. *Depth*: the transformer takes one step per frame, over the sum of the last
frame's embeddings, and a small second one goes through the codebooks of the frame (Lee et al. 2022, "Autoregressive
image generation using residual quantization").

B clips, F frames, Q codebooks, K entries of each, D width, N blocks of S frames.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melodjinn_jax.config import DynamicsConfig
from melodjinn_jax.models.embedding import Embed
from melodjinn_jax.models.transformer import Block, Compute, KVCache, Transformer

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def align_actions(actions: AnyArray, null: AnyArray, stride: int) -> AnyArray:
    """The one alignment rule: for every frame, the action that governs its prediction.

    Action i explains the transition from block i to block i + 1, so it belongs to all positions whose target is a
    token of block i + 1. Nothing leads into block 0, which gets the null action.

    Args:
      actions: [B, N - 1, ...], indices or embeddings, of JAX or NumPy.
      null: [...], the null action in the same form.
      stride: frames per block (S).

    Returns:
      [B, N * S, ...].
    """
    xp = actions.__array_namespace__()
    first = xp.broadcast_to(null, (actions.shape[0], 1, *actions.shape[2:])).astype(actions.dtype)
    return xp.repeat(xp.concat([first, actions], axis=1), stride, axis=1)


class DynamicsState(NamedTuple):
    """What one stream carries from frame to frame."""

    cache: KVCache
    previous_codes: jax.Array
    """int32 [B, Q], of the frame before; begin tokens where there is none."""
    position: jax.Array
    """int32 []: frames played so far."""


Choose = Callable[[jax.Array, int], jax.Array]
"""Picks tokens int32 [B] from logits float32 [B, K], for the codebook of the given index."""


class DynamicsModel(nnx.Module):
    """What the layouts share; `make_dynamics` builds one.

    Codes are 0..K-1; the token K begins a sequence and K + 1 hides a code. Actions 0..num_actions-1 are keys;
    num_actions is the null action.
    """

    transformer: Transformer
    embed_action: Embed
    embed_press: Embed | None
    """What practice adds to each action."""

    def __init__(self, *, num_codebooks: int, codebook_size: int, num_actions: int, action_stride: int):
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.null_action, self.action_stride = num_actions, action_stride

    @property
    def begin_token(self) -> int:
        return self.codebook_size

    @property
    def mask_token(self) -> int:
        return self.codebook_size + 1

    def __call__(
        self, codes_BFQ: jax.Array, actions: jax.Array, hidden_frames_BF: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [B, F, Q, K] of every token given all tokens before it.

        Args:
          codes_BFQ: int32.
          actions: keys int32 [B, N - 1], or their embeddings [B, N - 1, D].
          hidden_frames_BF: bool, frames whose tokens are masked where they serve as context.
        """
        if hidden_frames_BF is not None:
            codes_BFQ = jnp.where(hidden_frames_BF[..., None], self.mask_token, codes_BFQ)
        if actions.ndim == 2:
            actions = self.embed_action(actions)
        null = self.embed_action(jnp.asarray(self.null_action))
        return self.logits(codes_BFQ, align_actions(actions, null, self.action_stride)).astype(jnp.float32)

    @abstractmethod
    def logits(self, context_BFQ: jax.Array, actions_BFD: jax.Array) -> jax.Array:
        """Logits [B, F, Q, K] from the tokens that serve as context and each frame's embedded action."""

    @abstractmethod
    def layers(self) -> tuple[Block, ...]:
        """All blocks one by one, taken once for all frames of a stream."""

    @abstractmethod
    def fill_cache(self, layers: tuple[Block, ...], codes_BFQ: jax.Array, actions_BFD: jax.Array) -> KVCache:
        """The cache of a stream that has played these codes under these embedded actions, in one pass."""

    def state_after(self, layers: tuple[Block, ...], codes_BFQ: jax.Array, actions_BFD: jax.Array) -> DynamicsState:
        """The state of a stream after frames that are known: what `play` leaves after each of them in turn."""
        cache = self.fill_cache(layers, codes_BFQ, actions_BFD)
        return DynamicsState(cache, codes_BFQ[:, -1].astype(jnp.int32), jnp.asarray(codes_BFQ.shape[1], jnp.int32))

    @abstractmethod
    def play(
        self, layers: tuple[Block, ...], state: DynamicsState, action_B: jax.Array, choose: Choose
    ) -> tuple[DynamicsState, jax.Array]:
        """One frame of a stream, codebook by codebook.

        Args:
          layers: of `self.layers()`.
          state: of the stream.
          action_B: the action that governs the frame, int32, or its embedding [B, D].
          choose: picks each token from its logits.

        Returns:
          the new state, and the frame's codes int32 [B, Q].
        """

    def action_embedding(self, action_B: jax.Array, strength_B: jax.Array) -> jax.Array:
        """Embeddings [B, D] of actions given with a strength: 0 is the null action, 1 the action as it was trained.

        Action dropout trains both ends, so what lies between them and beyond costs no second pass through the model.
        Beyond 1, what practice has found is added in the same measure.
        """
        given = self.embed_action(action_B)
        null = self.embed_action(jnp.asarray(self.null_action))
        beyond = (strength_B[:, None] - 1).astype(given.dtype)
        strengthened = given + beyond * (given - null)
        if self.embed_press is None:
            return strengthened
        return strengthened + jnp.maximum(beyond, 0) * self.embed_press(action_B)

    def _embedded(self, action_B: jax.Array) -> jax.Array:
        """Embeddings [B, D] of actions, int32 [B], or embedded already."""
        return self.embed_action(action_B) if action_B.ndim == 1 else action_B

    def init_state(self, batch_size: int) -> DynamicsState:
        return DynamicsState(
            self.transformer.init_cache(batch_size),
            jnp.full((batch_size, self.num_codebooks), self.begin_token, jnp.int32),
            jnp.zeros((), jnp.int32),
        )


class FlatDynamics(DynamicsModel):
    """One sequence of tokens, one step of the transformer for each."""

    def __init__(self, config: DynamicsConfig, *, compute: Compute, rngs: nnx.Rngs, **sizes: int):
        super().__init__(**sizes)
        embedding = _embedding(config.dim, compute.dtype, rngs)
        self.embed_token = embedding(self.codebook_size + 2)
        self.embed_codebook = embedding(self.num_codebooks)
        self.embed_action = embedding(self.null_action + 1)
        window = config.window * self.num_codebooks
        self.transformer = Transformer(
            config.dim, config.num_heads, config.num_layers, window, compute, rngs, config.action_block
        )
        self.unembed = nnx.Linear(config.dim, self.codebook_size, dtype=compute.dtype, rngs=rngs)
        self.embed_press = _press_embedding(config, self.null_action + 1, compute.dtype, rngs)

    def _inputs(self, context_BFQ: jax.Array, actions_BFD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the transformer, and what steers it: [B, F * Q, D] each."""
        B, F, Q = context_BFQ.shape
        begin = jnp.full((B, 1), self.begin_token, context_BFQ.dtype)
        previous = jnp.concatenate([begin, context_BFQ.reshape(B, F * Q)[:, :-1]], axis=1)
        x = self.embed_token(previous).reshape(B, F, Q, -1) + self.embed_codebook.embedding[...]
        return x.reshape(B, F * Q, -1), jnp.repeat(actions_BFD, Q, axis=1)

    def logits(self, context_BFQ: jax.Array, actions_BFD: jax.Array) -> jax.Array:
        hidden = self.transformer(*self._inputs(context_BFQ, actions_BFD))
        return self.unembed(hidden).reshape(*context_BFQ.shape, -1)

    def fill_cache(self, layers: tuple[Block, ...], codes_BFQ: jax.Array, actions_BFD: jax.Array) -> KVCache:
        return self.transformer.fill_cache(layers, *self._inputs(codes_BFQ, actions_BFD))

    def layers(self) -> tuple[Block, ...]:
        return self.transformer.layers()

    def play(
        self, layers: tuple[Block, ...], state: DynamicsState, action_B: jax.Array, choose: Choose
    ) -> tuple[DynamicsState, jax.Array]:
        action, cache, tokens = self._embedded(action_B), state.cache, [state.previous_codes[:, -1]]
        for codebook in range(self.num_codebooks):
            x = self.embed_token(tokens[-1]) + self.embed_codebook(jnp.asarray(codebook))
            position = state.position * self.num_codebooks + codebook
            hidden, cache = self.transformer.step(layers, x, cache, position, action)
            tokens.append(choose(self.unembed(hidden).astype(jnp.float32), codebook))
        codes = jnp.stack(tokens[1:], axis=-1)
        return DynamicsState(cache, codes, state.position + 1), codes


class DepthDynamics(DynamicsModel):
    """One step of the transformer for each frame, and a small one, `depth`, through the frame's codebooks.

    Its input at a codebook is what the frame's step has found and the codebook's token before it. Both see tokens
    through the same table, in which every codebook has its own rows, for sums do not keep the order.
    """

    def __init__(self, config: DynamicsConfig, *, compute: Compute, rngs: nnx.Rngs, **sizes: int):
        super().__init__(**sizes)
        embedding = _embedding(config.dim, compute.dtype, rngs)
        self.embed_token = embedding(self.num_codebooks * (self.codebook_size + 2))
        self.embed_codebook = embedding(self.num_codebooks)
        self.embed_action = embedding(self.null_action + 1)
        self.transformer = Transformer(
            config.dim, config.num_heads, config.num_layers, config.window, compute, rngs, config.action_block
        )
        dim, heads = config.depth_dim, config.depth_dim * config.num_heads // config.dim
        self.to_depth = nnx.Linear(config.dim, dim, use_bias=False, dtype=compute.dtype, rngs=rngs)
        self.depth = Transformer(dim, heads, config.depth_layers, self.num_codebooks, compute, rngs)
        self.unembed = nnx.Linear(dim, self.codebook_size, dtype=compute.dtype, rngs=rngs)
        self.embed_press = _press_embedding(config, self.null_action + 1, compute.dtype, rngs)

    def _embed(self, tokens: jax.Array, codebook: jax.Array) -> jax.Array:
        return self.embed_token(tokens + codebook * (self.codebook_size + 2))

    def _embed_frames(self, codes_BFQ: jax.Array) -> jax.Array:
        """[B, F + 1, Q, D]: the begin tokens, then the codes."""
        begin = jnp.full_like(codes_BFQ[:, :1], self.begin_token)
        return self.embed_token.by_group(jnp.concatenate([begin, codes_BFQ], axis=1))

    def fill_cache(self, layers: tuple[Block, ...], codes_BFQ: jax.Array, actions_BFD: jax.Array) -> KVCache:
        x = self._embed_frames(codes_BFQ)[:, :-1].sum(axis=2)
        return self.transformer.fill_cache(layers[: self.transformer.num_layers], x, actions_BFD)

    def logits(self, context_BFQ: jax.Array, actions_BFD: jax.Array) -> jax.Array:
        B, F, Q = context_BFQ.shape
        embedded = self._embed_frames(context_BFQ)
        frames = self.transformer(embedded[:, :-1].sum(axis=2), actions_BFD)
        # The first codebook has no token before it in its frame: there stands the begin token.
        first = jnp.broadcast_to(embedded[:, :1, :1], (B, F, 1, embedded.shape[-1]))
        before = jnp.concatenate([first, embedded[:, 1:, :-1]], axis=2)
        x = frames[:, :, None] + before + self.embed_codebook.embedding[...]
        hidden = self.depth(self.to_depth(x).reshape(B * F, Q, -1))
        return self.unembed(hidden).reshape(B, F, Q, -1)

    def layers(self) -> tuple[Block, ...]:
        return (*self.transformer.layers(), *self.depth.layers())

    def play(
        self, layers: tuple[Block, ...], state: DynamicsState, action_B: jax.Array, choose: Choose
    ) -> tuple[DynamicsState, jax.Array]:
        large, small = layers[: self.transformer.num_layers], layers[self.transformer.num_layers :]
        B = len(action_B)
        x = self.embed_token.by_group(state.previous_codes).sum(axis=1)
        frame, cache = self.transformer.step(large, x, state.cache, state.position, self._embedded(action_B))
        before = self._embed(jnp.full(B, self.begin_token), jnp.asarray(0))
        depth_cache, tokens = self.depth.init_cache(B), []
        for codebook in range(self.num_codebooks):
            index = jnp.asarray(codebook)
            x = self.to_depth(frame + before + self.embed_codebook(index))
            hidden, depth_cache = self.depth.step(small, x, depth_cache, index)
            tokens.append(choose(self.unembed(hidden).astype(jnp.float32), codebook))
            before = self._embed(tokens[-1], index)
        codes = jnp.stack(tokens, axis=-1)
        return DynamicsState(cache, codes, state.position + 1), codes


def strengthen(params: Any, null_action: int, strength: float) -> Any:
    """Parameters under which every action is as `DynamicsModel.action_embedding` gives it with that strength."""
    table = params["embed_action"]["embedding"]
    strengthened = table + (strength - 1) * (table - table[null_action])
    if "embed_press" in params and strength > 1:
        strengthened += (strength - 1) * params["embed_press"]["embedding"]
    return {**params, "embed_action": {"embedding": strengthened}}


def _embedding(dim: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Callable[[int], Embed]:
    init = nnx.initializers.normal(0.3)
    return functools.partial(Embed, features=dim, dtype=dtype, embedding_init=init, rngs=rngs)


def _press_embedding(config: DynamicsConfig, actions: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Embed | None:
    """A table of zeros for a model that practises. Made last, so that all else begins as it would without."""
    if config.practice_rate == 0:
        return None
    return Embed(actions, config.dim, dtype=dtype, embedding_init=nnx.initializers.zeros, rngs=rngs)


def make_dynamics(config: DynamicsConfig, **arguments: Any) -> DynamicsModel:
    """The model of `config.layout`.

    Args:
      config: of the model.
      arguments: num_codebooks, codebook_size, num_actions, action_stride, compute and rngs.
    """
    layouts: dict[str, Callable[..., DynamicsModel]] = {"flat": FlatDynamics, "depth": DepthDynamics}
    return layouts[config.layout](config, **arguments)
