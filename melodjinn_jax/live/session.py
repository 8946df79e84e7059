"""Sessions: what was played, as it lies in memory and in one small file (docs/protocol.md, "The session file")."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from melodjinn_jax.errors import UserError
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.training.manifest import array_digest

FORMAT, VERSION = "melodjinn-session", 1
SUFFIX = ".melodjinn"
MAX_FRAMES = 540_000
MAX_HEADER_BYTES = 1 << 24
_LAST_FRAME = 2**31 - 1


@dataclass(frozen=True)
class Instrument:
    """What plays a stream: sizes, and the digests that say whether a session is of it."""

    name: str
    model: str
    codec: str
    action_space: str
    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    action_stride: int
    num_keys: int
    """Keys beside NOOP."""

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class Sampling:
    """How frames are sampled."""

    seed: int = 0
    temperature: float = 0.5
    top_k: int = 0
    strength: float = 1.0


def model_digest(params: Any) -> str:
    """SHA-256 of a model's parameters, in hex: of their names and their arrays' digests."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    lines = sorted(f"{jax.tree_util.keystr(path)} {array_digest(np.asarray(leaf))}" for path, leaf in leaves)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Session:
    """A stream's frames `first_frame` to `end`: their codes and actions, and how they were sampled.

    The first `prompt_frames` of them were given. Both ends lie between blocks.
    """

    def __init__(self, instrument: Instrument, sampling: Sampling, prompt: np.ndarray, actions: np.ndarray):
        """A session that begins with a prompt: codes [F, Q] of whole blocks, one or more, and actions [F]."""
        self.instrument = instrument
        self.first_frame = 0
        self.prompt_frames = len(prompt)
        self.settings: list[tuple[int, Sampling]] = [(0, sampling)]
        self._codes = np.array(prompt, np.uint16)
        self._actions = np.array(actions, np.uint16)
        self._length = len(prompt)

    @property
    def end(self) -> int:
        """Number of the frame after the last."""
        return self.first_frame + self._length

    @property
    def codes(self) -> np.ndarray:
        """uint16 [F, Q]."""
        return self._codes[: self._length]

    @property
    def actions(self) -> np.ndarray:
        """uint16 [F]: the action that governs each frame."""
        return self._actions[: self._length]

    @property
    def begin(self) -> int:
        """The first frame that may be played from."""
        return self.first_frame + self.prompt_frames

    def sampling(self, frame: int) -> Sampling:
        """How this frame is sampled."""
        return next(sampling for start, sampling in reversed(self.settings) if start <= frame)

    def change(self, sampling: Sampling) -> None:
        """Sample the frames from `end` on in this way."""
        self.settings = [entry for entry in self.settings if entry[0] < self.end]
        if not self.settings or self.settings[-1][1] != sampling:
            self.settings.append((self.end, sampling))

    def append(self, codes: np.ndarray, action: int) -> None:
        """One more frame: its codes [Q], and the action that governed it."""
        if self._length == len(self._codes):
            room = max(1024, self._length // 2)
            self._codes = np.concatenate([self._codes, np.zeros((room, self._codes.shape[1]), np.uint16)])
            self._actions = np.concatenate([self._actions, np.zeros(room, np.uint16)])
        self._codes[self._length], self._actions[self._length] = codes, action
        self._length += 1

    def rewind(self, frame: int) -> None:
        """Forget this frame, which `begin` <= frame <= `end`, and all after it; in the middle of a block, all of it."""
        kept = frame - frame % self.instrument.action_stride
        self._length = max(kept, self.begin) - self.first_frame
        self.settings = [entry for entry in self.settings if entry[0] < self.end] or self.settings[:1]

    def forget(self, before: int, prompt_frames: int) -> None:
        """Forget the frames before this one, which begins a block; the `prompt_frames` after it count as given."""
        sampling = self.sampling(before)
        self._codes, self._actions = (a[before - self.first_frame : self._length].copy() for a in self._arrays)
        self._length -= before - self.first_frame
        self.first_frame, self.prompt_frames = before, prompt_frames
        self.settings = [(before, sampling), *(entry for entry in self.settings if entry[0] > before)]

    def opening(self, frame: int, count: int) -> np.ndarray:
        """The codes [count, Q] from a frame on; the last one is repeated where there are no more."""
        known = self.codes[frame - self.first_frame :][:count]
        return np.pad(known, ((0, count - len(known)), (0, 0)), mode="edge")

    def copy(self) -> "Session":
        """A session of its own, which stays as this one is now."""
        session = Session(self.instrument, self.settings[0][1], self.codes, self.actions)
        session.first_frame, session.prompt_frames = self.first_frame, self.prompt_frames
        session.settings = list(self.settings)
        return session

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self._codes, self._actions

    def to_bytes(self, made_with: dict[str, Any]) -> bytes:
        """The session file; a block that is not complete is left out."""
        frames = self._length - self._length % self.instrument.action_stride
        codes = self._codes[:frames].astype("<u2").tobytes()
        actions = self._actions[:frames]
        changes = np.flatnonzero(np.diff(actions, prepend=-1))
        header = {
            "format": FORMAT,
            "version": VERSION,
            **asdict(self.instrument),
            "first_frame": self.first_frame,
            "frames": frames,
            "prompt_frames": self.prompt_frames,
            "settings": [
                {"frame": frame, **asdict(sampling)}
                for frame, sampling in self.settings
                if frame < self.first_frame + frames
            ],
            "actions": [[self.first_frame + int(i), int(actions[i])] for i in changes],
            "made_with": made_with,
            "codes_crc32": zlib.crc32(codes),
        }
        return json.dumps(header, allow_nan=False).encode() + b"\n" + codes

    @classmethod
    def from_bytes(cls, content: bytes) -> tuple["Session", dict[str, Any]]:
        """The session of a file, and what it was made with. Raises `UserError` if the file is damaged or no session."""
        header, codes = _split(content)
        try:
            return _build(header, codes), header["made_with"]
        # Whatever a damaged byte does to the parsing is the same news.
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"the session file is damaged ({error}): save it again") from error


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and codes of a session file."""
    line, _, codes = content.partition(b"\n")
    no_session = UserError("this is no session file: give one that was saved while playing")
    if len(line) > MAX_HEADER_BYTES:
        raise no_session
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise no_session from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise no_session
    if header.get("version") != VERSION:
        raise UserError("the session file is of a version that is not known here: update melodjinn")
    return header, codes


def _whole(value: Any, low: int, high: int, name: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} cannot be {repr(value)[:40]}")
    return value


def _number(value: Any, low: float, high: float, name: str) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} cannot be {repr(value)[:40]}")
    return float(value)


def _build(header: dict[str, Any], content: bytes) -> Session:
    """The session of a header and its codes' bytes. Raises `ValueError`, `TypeError` or `KeyError` if they are bad."""
    instrument = _instrument(header)
    stride = instrument.action_stride
    frames = _whole(header["frames"], stride, MAX_FRAMES, "frames")
    first = _whole(header["first_frame"], 0, _LAST_FRAME - frames, "first_frame")
    prompt_frames = _whole(header["prompt_frames"], stride, frames, "prompt_frames")
    if first % stride or frames % stride or prompt_frames % stride:
        raise ValueError("its frames are no whole blocks")
    if len(content) != 2 * frames * instrument.num_codebooks:
        raise ValueError("it is cut short")
    if zlib.crc32(content) != header["codes_crc32"]:
        raise ValueError("its codes were changed")
    codes = np.frombuffer(content, "<u2").reshape(frames, instrument.num_codebooks)
    if codes.max() >= instrument.codebook_size:
        raise ValueError("its codes are none of the codec's")
    if not isinstance(header["made_with"], dict):
        raise ValueError("made_with cannot be read")
    settings = list(_settings(header["settings"], first, frames))
    session = Session(instrument, settings[0][1], codes, _actions(header["actions"], first, frames, instrument))
    session.first_frame, session.prompt_frames, session.settings = first, prompt_frames, settings
    return session


def _instrument(header: dict[str, Any]) -> Instrument:
    numbers = {
        "sample_rate": (1000, 768_000),
        "hop_length": (1, 65535),
        "num_codebooks": (1, 64),
        "codebook_size": (2, 65536),
        "action_stride": (1, 4096),
        "num_keys": (0, 65534),
    }
    values: dict[str, Any] = {name: _whole(header[name], low, high, name) for name, (low, high) in numbers.items()}
    for name in ("name", "model", "codec", "action_space"):
        if type(header[name]) is not str or len(header[name]) > 200:
            raise ValueError(f"{name} cannot be read")
        values[name] = header[name]
    return Instrument(**values)


def _settings(entries: list[dict[str, Any]], first: int, frames: int) -> Iterator[tuple[int, Sampling]]:
    previous = first - 1
    for entry in entries:
        frame = _whole(entry["frame"], previous + 1, first + frames - 1, "the frame of settings")
        if previous < first and frame != first:
            raise ValueError("settings do not begin with the first frame")
        sampling = Sampling(
            _whole(entry["seed"], 0, 2**32 - 1, "seed"),
            _number(entry["temperature"], 0, 1e3, "temperature"),
            _whole(entry["top_k"], 0, 2**31 - 1, "top_k"),
            _number(entry["strength"], 0, 1e3, "strength"),
        )
        yield frame, sampling
        previous = frame


def _actions(entries: list[list[int]], first: int, frames: int, instrument: Instrument) -> np.ndarray:
    """uint16 [F]."""
    starts, values = [], []
    previous = first - 1
    for frame, action in entries:
        previous = _whole(frame, previous + 1, first + frames - 1, "the frame of an action")
        if frame % instrument.action_stride:
            raise ValueError("an action begins inside a block")
        starts.append(frame - first)
        values.append(action if action == NO_ACTION else _whole(action, 0, instrument.num_keys, "an action"))
    if not starts or starts[0]:
        raise ValueError("actions do not begin with the first frame")
    return np.repeat(np.array(values, np.uint16), np.diff([*starts, frames]))


def require_instrument(session: Session, instrument: Instrument, to_continue: bool) -> None:
    """Raise `UserError` unless a session's codes can be played, and to continue its actions, by this instrument."""
    theirs = session.instrument
    checks = [("codec", "codec"), *([("action_space", "action space")] if to_continue else [])]
    for field, name in checks:
        if getattr(theirs, field) != getattr(instrument, field):
            raise UserError(
                f"the session was played with the {name} {getattr(theirs, field)[:12]}, but this model has "
                f"{getattr(instrument, field)[:12]}: open it with the run {theirs.name!r} that it came from"
            )
    sizes = ("sample_rate", "hop_length", "num_codebooks", "codebook_size")
    for field in (*sizes, *(("action_stride", "num_keys") if to_continue else ())):
        if getattr(theirs, field) != getattr(instrument, field):
            raise UserError(f"the session file is damaged ({field} is not that of its codec): save it again")


def with_seed(sampling: Sampling, seed: int | None) -> Sampling:
    """The same sampling with another seed, if one is given."""
    return sampling if seed is None else dataclasses.replace(sampling, seed=seed)
