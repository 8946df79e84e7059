"""The exported graphs played by onnxruntime: what the page does in a browser, in Python, and its check against JAX."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime

from melodjinn_jax.codecs.base import Codec
from melodjinn_jax.training.run import Run
from melodjinn_jax.training.state import Models

NOISE_LEVEL = 0.1
"""Of the waveform whose codes the check plays."""


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class FramePlayer:
    """One stream through a frame graph, with its rings."""

    def __init__(self, model: onnx.ModelProto):
        self._session = _session(model)
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        self._names = list(outputs)
        self._num_codebooks, self._codebook_size = outputs["logits"]
        shapes = {value.name: value.shape for value in self._session.get_inputs() if f"new_{value.name}" in outputs}
        self._rings = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self._entries = outputs["new_keys.0"][1]
        self.previous = np.full(self._num_codebooks, self._codebook_size, np.int32)
        self.position = 0

    def play(
        self,
        action: int,
        *,
        strength: float = 1.0,
        given: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        top_k: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One frame: its codes int32 [Q] and logits float32 [Q, K].

        Args:
          action: a key, or the null action.
          strength: how strongly it acts; 1 is as it was trained.
          given: codes [Q] to take instead of sampling.
          noise: the temperature times Gumbel numbers [Q, K]; none: greedy.
          top_k: tokens to sample from; 0 is all.
        """
        Q, K = self._num_codebooks, self._codebook_size
        feed = {
            "previous": self.previous,
            "position": np.array(self.position, np.int32),
            "action": np.array([action], np.int32),
            "strength": np.array(strength, np.float32),
            "noise": np.zeros((Q, K), np.float32) if noise is None else noise,
            "top_k": np.array([top_k or K], np.int64),
            "given": np.full(Q, -1, np.int32) if given is None else given.astype(np.int32),
        }
        result = dict(zip(self._names, self._session.run(None, feed | self._rings), strict=True))
        for name, ring in self._rings.items():
            slots = (self.position * self._entries + np.arange(self._entries)) % ring.shape[1]
            ring[:, slots] = result[f"new_{name}"]
        self.previous, self.position = result["codes"], self.position + 1
        return result["codes"], result["logits"]


class SoundPlayer:
    """One stream through a decoder graph, with its past."""

    def __init__(self, model: onnx.ModelProto):
        self._session = _session(model)
        self._names = [output.name for output in self._session.get_outputs()]
        pasts = [value for value in self._session.get_inputs() if value.name.startswith("past.")]
        self._past = {value.name: np.zeros(value.shape, np.float32) for value in pasts}

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The sound float32 [F * H] of the next codes [F, Q]."""
        feed = {"codes": codes.astype(np.int32)} | self._past
        result = dict(zip(self._names, self._session.run(None, feed), strict=True))
        self._past = {name: result[f"new_{name}"] for name in self._past}
        return result["sound"]


@dataclass(frozen=True)
class Difference:
    """How far the exported graphs are from JAX in float32."""

    logits: float
    """Largest difference of a logit."""
    codes: float
    """Share of tokens whose likeliest code is another."""
    sound: float
    """Largest difference of a sample, full scale 1."""


def compare(run: Run, dynamics: onnx.ModelProto, decoder: onnx.ModelProto, frames: int, seed: int = 0) -> Difference:
    """Play `frames` frames of codes of noise under random keys through the graphs and through JAX."""
    rng = np.random.default_rng(seed)
    codec, stride = run.codec, run.action_space.stride
    waveform = rng.normal(0, NOISE_LEVEL, (1, frames * codec.hop_length)).astype(np.float32)
    codes = np.asarray(codec.encode(waveform))
    actions = rng.integers(0, run.action_space.num_keys + 1, (1, -(-frames // stride) - 1))
    expected = _reference_logits(run, codes, actions)
    player = FramePlayer(dynamics)
    by_frame = np.repeat(np.concatenate([[run.models.num_codes], actions[0]]), stride)[:frames]
    logits = np.stack([player.play(by_frame[f], given=codes[0, f])[1] for f in range(frames)])
    return Difference(
        logits=float(np.abs(logits - expected).max()),
        codes=float((logits.argmax(-1) != expected.argmax(-1)).mean()),
        sound=float(np.abs(_streamed(codec, decoder, codes[0]) - codec.decode(codes)[0]).max()),
    )


def _reference_logits(run: Run, codes: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Logits [F, Q, K] of JAX in float32, whose whole-clip pass wants whole blocks."""
    training = dataclasses.replace(run.config.training, dtype="float32")
    models = Models(dataclasses.replace(run.config, training=training), run.models.codec)
    stride = run.action_space.stride
    padding = -codes.shape[1] % stride
    padded = np.pad(codes, [(0, 0), (0, padding), (0, 0)])

    @jax.jit
    def logits(params, codes, actions):
        return models.dynamics(params)(codes, actions)

    found = logits(run.state["dynamics"], jnp.asarray(padded, jnp.int32), jnp.asarray(actions, jnp.int32))
    return np.asarray(found)[0, : codes.shape[1]]


def _streamed(codec: Codec, decoder: onnx.ModelProto, codes: np.ndarray) -> np.ndarray:
    player = SoundPlayer(decoder)
    chunks = [codes[: codec.start_frames], *np.split(codes[codec.start_frames :], len(codes) - codec.start_frames)]
    return np.concatenate([player.decode(chunk) for chunk in chunks])
