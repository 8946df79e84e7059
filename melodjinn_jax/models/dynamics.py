"""The dynamics model: an autoregressive transformer over codec tokens, steered by actions.

The codes of a clip are flattened, frame by frame and codebook by codebook, into one sequence. The input at a position
is the token before it, the index of the codebook to predict, and the action that governs the frame to predict.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from melodjinn_jax.config import DynamicsConfig
from melodjinn_jax.models.transformer import Block, KVCache, Transformer


def align_actions(actions: jax.Array, null: jax.Array, stride: int) -> jax.Array:
    """The one alignment rule: for every frame, the action that governs its prediction.

    Action i explains the transition from block i to block i + 1, so it belongs to all positions whose target is a
    token of block i + 1. Nothing leads into block 0, which gets the null action.

    Args:
      actions: [B, N - 1, ...], indices or embeddings.
      null: [...], the null action in the same form.
      stride: frames per block (S).

    Returns:
      [B, N * S, ...].
    """
    first = jnp.broadcast_to(null, (actions.shape[0], 1, *actions.shape[2:])).astype(actions.dtype)
    return jnp.repeat(jnp.concatenate([first, actions], axis=1), stride, axis=1)


class DynamicsState(NamedTuple):
    """What one stream carries from token to token."""

    cache: KVCache
    previous_token: jax.Array
    """int32 [B]."""
    position: jax.Array
    """int32 []: tokens played so far."""


class DynamicsModel(nnx.Module):
    """Predicts the next codec token from the past tokens and the actions.

    Token ids 0..K-1 are codes; K begins a sequence and K + 1 hides a token. Actions 0..num_actions-1 are keys;
    num_actions is the null action.
    """

    def __init__(
        self,
        config: DynamicsConfig,
        *,
        num_codebooks: int,
        codebook_size: int,
        num_actions: int,
        action_stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.null_action, self.action_stride = num_actions, action_stride
        embedding = functools.partial(nnx.Embed, features=config.dim, dtype=dtype, rngs=rngs)
        init = nnx.initializers.normal(0.3)
        self.embed_token = embedding(codebook_size + 2, embedding_init=init)
        self.embed_codebook = embedding(num_codebooks, embedding_init=init)
        self.embed_action = embedding(num_actions + 1, embedding_init=init)
        self.transformer = Transformer(
            config.dim, config.num_heads, config.num_layers, config.window * num_codebooks, dtype, rngs
        )
        self.unembed = nnx.Linear(config.dim, codebook_size, dtype=dtype, rngs=rngs)

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
        B, F, Q = codes_BFQ.shape
        context = codes_BFQ
        if hidden_frames_BF is not None:
            context = jnp.where(hidden_frames_BF[..., None], self.mask_token, context)
        begin = jnp.full((B, 1), self.begin_token, context.dtype)
        previous = jnp.concatenate([begin, context.reshape(B, F * Q)[:, :-1]], axis=1)
        if actions.ndim == 2:
            actions = self.embed_action(actions)
        null = self.embed_action(jnp.asarray(self.null_action))
        by_frame = align_actions(actions, null, self.action_stride)
        x = self.embed_token(previous).reshape(B, F, Q, -1) + self.embed_codebook.embedding[...] + by_frame[:, :, None]
        hidden = self.transformer(x.reshape(B, F * Q, -1))
        return self.unembed(hidden).astype(jnp.float32).reshape(B, F, Q, -1)

    def action_embedding(self, action_B: jax.Array, strength_B: jax.Array) -> jax.Array:
        """Embeddings [B, D] of actions given with a strength: 0 is the null action, 1 the action as it was trained.

        Action dropout trains both ends, so what lies between them and beyond costs no second pass through the model.
        """
        given = self.embed_action(action_B)
        null = self.embed_action(jnp.asarray(self.null_action))
        return given + (strength_B[:, None] - 1).astype(given.dtype) * (given - null)

    def init_state(self, batch_size: int) -> DynamicsState:
        return DynamicsState(
            self.transformer.init_cache(batch_size),
            jnp.full(batch_size, self.begin_token, jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def token_logits(
        self, layers: tuple[Block, ...], state: DynamicsState, action_B: jax.Array, codebook: int
    ) -> tuple[jax.Array, KVCache]:
        """Logits [B, K] of the next token, and the cache that now holds the previous one.

        Args:
          layers: `self.transformer.layers()`, taken once for all tokens.
          state: of the stream.
          action_B: the action governing the frame that the next token belongs to, int32, or its embedding [B, D].
          codebook: index of the next token's codebook.
        """
        action_BD = self.embed_action(action_B) if action_B.ndim == 1 else action_B
        x = self.embed_token(state.previous_token) + self.embed_codebook(jnp.asarray(codebook))
        hidden, cache = self.transformer.step(layers, x + action_BD, state.cache, state.position)
        return self.unembed(hidden).astype(jnp.float32), cache
