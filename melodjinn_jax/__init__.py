"""Melodjinn: steerable music world models in JAX.

Dimension letters, used in shape comments and docstrings everywhere:

    B  batch (clips)               F  frames of a clip (one codec time step each)
    H  hop length (samples)        Q  codebooks of the codec
    S  action stride (frames)      N  blocks of a clip, N = F / S
    C  LAM feature channels        Z  width of a latent action
    K  codes or keys               D  model width
    L  sequence length (tokens)    A  attention heads
    P  width of one head           W  attention window
"""

__version__ = "0.1.0"
