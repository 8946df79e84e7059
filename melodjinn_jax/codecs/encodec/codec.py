"""The 24 kHz EnCodec as a `Codec`: residual codes at one of its bandwidths."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs.base import Codec, CodecState
from melodjinn_jax.codecs.encodec.model import (
    CODEBOOK_SIZE,
    HOP_LENGTH,
    SAMPLE_RATE,
    START_FRAMES,
    Params,
    Stream,
    build_params,
    embed,
    initial_decoder,
    initial_encoder,
    synthesize,
)
from melodjinn_jax.codecs.encodec.weights import layout, read_weights
from melodjinn_jax.codecs.rvq import lookup, quantize
from melodjinn_jax.errors import UserError

BANDWIDTHS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
"""Codebooks by kbps: each adds 10 bits to each of 75 frames a second."""


@jax.jit
def encode_chunk(params: Params, stream: Stream, waveform: jax.Array) -> tuple[Stream, jax.Array]:
    """The new encoder state, and codes int32 [B, F, Q] of a waveform [B, F * H]."""
    stream, latents = embed(params["encoder"], stream, waveform)
    return stream, quantize(params["codebooks"], latents)[1]


@jax.jit
def decode_chunk(params: Params, stream: Stream, codes: jax.Array) -> tuple[Stream, jax.Array]:
    """The new decoder state, and the waveform float32 [B, F * H] of codes [B, F, Q]; computed in the state's type."""
    latents = lookup(params["codebooks"], codes).astype(stream.memory["first"].dtype)
    stream, waveform = synthesize(params["decoder"], stream, latents)
    return stream, waveform.astype(jnp.float32)


class EncodecCodec(Codec):
    """EnCodec 24 kHz at one bandwidth. It saves the codebooks of that bandwidth, and so has a digest of its own."""

    kind = "encodec_24khz"
    sample_rate = SAMPLE_RATE
    hop_length = HOP_LENGTH
    codebook_size = CODEBOOK_SIZE
    start_frames = START_FRAMES
    chunk_frames = 75

    def __init__(self, weights: dict[str, np.ndarray], bandwidth: float, decoder_dtype: Any = jnp.float32):
        """`weights` as `read_weights` gives them; `decoder_dtype` bfloat16 decodes faster where the device likes it.

        Raises `UserError` for a bandwidth that the model does not have.
        """
        if bandwidth not in BANDWIDTHS:
            raise UserError(
                f"bandwidth {bandwidth:g} kbps: EnCodec has {', '.join(f'{kbps:g}' for kbps in BANDWIDTHS)}"
            )
        self.bandwidth = float(bandwidth)
        self.num_codebooks = BANDWIDTHS[bandwidth]
        weights = {name: weights[name] for name in layout(self.num_codebooks)}
        super().__init__(
            {
                "sample_rate": SAMPLE_RATE,
                "hop_length": HOP_LENGTH,
                "num_codebooks": self.num_codebooks,
                "codebook_size": CODEBOOK_SIZE,
                "bandwidth": self.bandwidth,
            },
            weights,
        )
        self._dtype = decoder_dtype
        self._params = build_params(weights)
        self._params["decoder"] = jax.tree.map(lambda leaf: leaf.astype(decoder_dtype), self._params["decoder"])

    @classmethod
    def from_published(
        cls, bandwidth: float, file: str | Path | None = None, decoder_dtype: Any = jnp.float32
    ) -> "EncodecCodec":
        """With the published weights, of a safetensors file or of the Hub. Raises `UserError` if there are none."""
        return cls(read_weights(file), bandwidth, decoder_dtype)

    @classmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> "EncodecCodec":
        return cls(arrays, header["bandwidth"])

    def initial_state(self, batch: int) -> CodecState:
        return CodecState(initial_encoder(batch), initial_decoder(batch, self._dtype))

    def encode_chunk(self, state: CodecState, waveform: jax.Array) -> tuple[CodecState, jax.Array]:
        encoder, codes = encode_chunk(self._params, state.encoder, waveform)
        return state._replace(encoder=encoder), codes

    def decode_chunk(self, state: CodecState, codes: jax.Array) -> tuple[CodecState, jax.Array]:
        decoder, waveform = decode_chunk(self._params, state.decoder, codes)
        return state._replace(decoder=decoder), waveform
