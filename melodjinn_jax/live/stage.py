"""What a server plays with, the same for all of its listeners."""

from dataclasses import dataclass
from typing import Any

from melodjinn_jax.live import protocol
from melodjinn_jax.live.performance import Performance, Prompt
from melodjinn_jax.live.protocol import Limits
from melodjinn_jax.live.session import MAX_FRAMES, Sampling
from melodjinn_jax.live.stream import Streamer


@dataclass(frozen=True)
class Stage:
    """All that the server plays with."""

    streamer: Streamer
    prompt: Prompt
    sampling: Sampling
    key_names: tuple[str, ...]
    """Of NOOP and every key."""
    holds: bool
    """Whether a key that stays down keeps acting."""

    @property
    def limits(self) -> Limits:
        instrument = self.streamer.instrument
        return Limits(
            top_k=(0, instrument.codebook_size),
            keys=instrument.num_keys,
            listeners=self.streamer.slots,
            session_frames=MAX_FRAMES,
        )

    def perform(self) -> Performance:
        """A new listener's stream."""
        return Performance(self.streamer, self.prompt, self.sampling, self.limits, self.holds)

    def welcome(self) -> dict[str, Any]:
        """Fields of the welcome that do not depend on the listener."""
        instrument = self.streamer.instrument
        limits = {name: value for name, value in vars(self.limits).items() if name != "keys"}
        sizes = ("name", "sample_rate", "hop_length", "action_stride", "num_codebooks", "codebook_size")
        return {
            "version": protocol.VERSION,
            **{name: getattr(instrument, name) for name in sizes},
            "keys": [{"key": key, "name": name} for key, name in enumerate(self.key_names)],
            "hold": self.holds,
            "digests": {name: getattr(instrument, name) for name in ("model", "codec", "action_space")},
            "limits": limits,
        }
