"""EnCodec at 24 kHz (Defossez et al. 2022) in JAX, with its published weights and without torch."""

from melodjinn_jax.codecs.encodec.codec import BANDWIDTHS, EncodecCodec

__all__ = ["BANDWIDTHS", "EncodecCodec"]
