"""The wire protocol of live play, as docs/protocol.md tells it: parsing what clients send, packing what they get.

Whatever a client sends, `parse_text` and `parse_binary` return a message or raise `ProtocolError`; nothing else.
"""

import dataclasses
import json
import struct
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = 1
SUBPROTOCOL = "melodjinn.1"
NO_ACTION = 65535
"""The null action on the wire and in session files: no action was given."""

AUDIO, SESSION, WAV = 1, 2, 3
"""First byte of a binary message."""
_AUDIO_HEADER = struct.Struct("<BBHIHH")

CLOSING = {"rate": 1008, "token": 1008, "size": 1009, "server": 1011, "full": 1013}
"""Codes of errors that end the connection, and the WebSocket's close code for each."""


class ProtocolError(Exception):
    """A message that is refused: `code` for programs, one sentence for people."""

    def __init__(self, code: str, sentence: str):
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What clients may ask for; sent with the welcome. Pairs are inclusive ranges."""

    temperature: tuple[float, float] = (0.0, 2.0)
    top_k: tuple[int, int] = (0, 1024)
    strength: tuple[float, float] = (0.0, 3.0)
    bpm: tuple[float, float] = (30.0, 300.0)
    ahead: tuple[int, int] = (1, 150)
    seed: tuple[int, int] = (0, 2**32 - 1)
    text_bytes: int = 4096
    session_bytes: int = 1 << 25
    messages_per_second: int = 100
    session_frames: int = 540_000
    wav_frames: int = 45_000
    listeners: int = 4
    keys: int = 0
    """Keys beside NOOP."""

    def range_of(self, field: str) -> tuple[float, float]:
        """The values that a message's number may have."""
        if field == "key":
            return 0, self.keys
        if field in ("frame", "at", "beat", "take", "from_frame"):
            return 0, 2**31 - 1
        return getattr(self, field)


@dataclass(frozen=True)
class Play:
    """Let audio flow."""


@dataclass(frozen=True)
class Pause:
    """Make no further frames."""


@dataclass(frozen=True)
class Press:
    """A key goes down: now, on the next beat, or at a frame."""

    key: int
    hold: bool | None = None
    on_beat: bool = False
    at: int | None = None


@dataclass(frozen=True)
class Release:
    """A key goes up."""

    key: int


@dataclass(frozen=True)
class ReleaseAll:
    """Every key goes up; nothing stays scheduled."""


@dataclass(frozen=True)
class Tempo:
    """The tempo, and the frame of a beat."""

    bpm: float
    beat: int | None = None


@dataclass(frozen=True)
class Tap:
    """A beat was tapped while this frame was heard."""

    frame: int


@dataclass(frozen=True)
class Follow:
    """Estimate the tempo from the keys played."""


@dataclass(frozen=True)
class Settings:
    """How to sample, from the next frame on."""

    temperature: float | None = None
    top_k: int | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Buffer:
    """Frames that may be made beyond the one heard."""

    ahead: int


@dataclass(frozen=True)
class Played:
    """All frames of a take before this one have been heard."""

    take: int
    frame: int


@dataclass(frozen=True)
class Rewind:
    """Go on from a past frame."""

    frame: int
    seed: int | None = None


@dataclass(frozen=True)
class Restart:
    """Begin again from the prompt."""

    seed: int | None = None


@dataclass(frozen=True)
class Save:
    """Send the session file."""


@dataclass(frozen=True)
class Wav:
    """Send the sound from a frame on."""

    from_frame: int = 0


@dataclass(frozen=True)
class Load:
    """A session file to play on from."""

    content: bytes


Message = (
    Play
    | Pause
    | Press
    | Release
    | ReleaseAll
    | Tempo
    | Tap
    | Follow
    | Settings
    | Buffer
    | Played
    | Rewind
    | Restart
    | Save
    | Wav
    | Load
)

_TYPES: dict[str, type] = {
    "play": Play,
    "pause": Pause,
    "press": Press,
    "release": Release,
    "release_all": ReleaseAll,
    "tempo": Tempo,
    "tap": Tap,
    "follow": Follow,
    "settings": Settings,
    "buffer": Buffer,
    "played": Played,
    "rewind": Rewind,
    "restart": Restart,
    "save": Save,
    "wav": Wav,
}
_NAME_ON_WIRE = {"from_frame": "from"}  # a word of Python's own


def parse_text(text: str, limits: Limits) -> Message:
    """The message that a client sent as text. Raises `ProtocolError` for anything but a good one."""
    if len(text.encode("utf-8", "replace")) > limits.text_bytes:
        raise ProtocolError("size", f"a text message may have {limits.text_bytes} bytes at most")
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("message", "a text message must be one JSON object") from error
    if not isinstance(fields, dict):
        raise ProtocolError("message", "a text message must be one JSON object")
    name = fields.pop("type", None)
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError("message", f"type must be one of {', '.join(_TYPES)}")
    hints = {_NAME_ON_WIRE.get(field, field): (field, hint) for field, hint in typing.get_type_hints(kind).items()}
    if unknown := sorted(fields.keys() - hints.keys()):
        raise ProtocolError("message", f"{name} has no field {unknown[0][:40]!r}")
    values = {hints[wire][0]: _value(name, wire, *hints[wire], value, limits) for wire, value in fields.items()}
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ProtocolError("message", f"{name} needs the field {field.name}")
    message: Message = kind(**values)
    return message


def parse_binary(content: bytes, limits: Limits) -> Message:
    """The message that a client sent as bytes. Raises `ProtocolError` for anything but a session."""
    if content[:1] != bytes([SESSION]):
        raise ProtocolError("message", f"a binary message must begin with the byte {SESSION}, for a session file")
    if len(content) - 1 > limits.session_bytes:
        raise ProtocolError("size", f"a session file may have {limits.session_bytes} bytes at most")
    return Load(content[1:])


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _value(message: str, wire: str, field: str, hint: Any, value: Any, limits: Limits) -> Any:
    """`value` as what the field `wire` of a message wants."""
    kinds = typing.get_args(hint) or (hint,)
    kind = next(kind for kind in (bool, float, int) if kind in kinds)
    accepted, wanted = {
        bool: ((bool,), "true or false"),
        float: ((int, float), "a number"),
        int: ((int,), "a whole number"),
    }[kind]
    if type(value) not in accepted:
        raise ProtocolError("message", f"{wire} of {message} must be {wanted}")
    if kind is bool:
        return value
    low, high = limits.range_of(field)
    if not low <= value <= high:
        raise ProtocolError("message", f"{wire} of {message} must lie between {low:g} and {high:g}")
    return kind(value)


def pack_text(kind: str, **fields: Any) -> str:
    """A text message to a client. Raises `ValueError` for a number that JSON does not have."""
    return json.dumps({"type": kind, **fields}, allow_nan=False)


@dataclass(frozen=True)
class Audio:
    """Frames on their way to a client."""

    take: int
    frame: int
    """Number of the first frame."""
    actions: np.ndarray
    """uint16 [F]: what governed each frame."""
    pcm: np.ndarray
    """int16 [F, H]."""


def pack_audio(audio: Audio) -> bytes:
    """An audio packet."""
    frames, hop = audio.pcm.shape
    header = _AUDIO_HEADER.pack(AUDIO, VERSION, frames, audio.frame, audio.take % 65536, hop)
    return header + audio.actions.astype("<u2").tobytes() + audio.pcm.astype("<i2").tobytes()


def unpack_audio(packet: bytes) -> Audio:
    """The inverse of `pack_audio`, as a client does it. Raises `ValueError` for anything else."""
    if len(packet) < _AUDIO_HEADER.size:
        raise ValueError("an audio packet is cut short")
    kind, version, frames, frame, take, hop = _AUDIO_HEADER.unpack_from(packet)
    if (kind, version) != (AUDIO, VERSION) or len(packet) != _AUDIO_HEADER.size + 2 * frames * (1 + hop):
        raise ValueError("this is no audio packet of this version")
    values = np.frombuffer(packet, "<i2", offset=_AUDIO_HEADER.size)
    return Audio(take, frame, values[:frames].view("<u2"), values[frames:].reshape(frames, hop))
