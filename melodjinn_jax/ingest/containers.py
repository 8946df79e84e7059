"""What the bytes of an audio file say of their own completeness, which a decoder may pass over without a word.

libsndfile reads a WAV, AIFF, MP3 or Ogg file that was cut off as far as it goes, and of streams that follow one another
only the first. So the lengths that these containers state are compared with the bytes that are there.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNKNOWN_SIZE = 0x7FFF_F000  # a program that wrote to a pipe puts the largest number where it knew none
_MIN_FRAMES = 4  # fewer MPEG frames in a row may be chance
_LAYER_3_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_SEVERAL = ("several recordings", "a second one follows the first: split it")
_OGG_PAGE_HEADER = 27
_OGG_FIRST, _OGG_LAST = 2, 4


@dataclass(frozen=True)
class Container:
    """What the container says."""

    fault: tuple[str, str] | None = None
    """Why the file cannot be one whole recording, as kind and detail; None if nothing speaks against it."""
    seconds: float | None = None
    """Duration by its bytes, where these tell."""


def read_container(path: Path) -> Container:
    """Look through the container's own lengths; formats that the decoder checks by itself say nothing.

    Raises `OSError` if the file cannot be read.
    """
    with open(path, "rb") as file:
        magic = file.read(12)
    if magic[:4] in (b"RIFF", b"FORM"):
        return Container(fault=_chunk_fault(path, magic))
    if magic[:4] == b"OggS":
        return Container(fault=_ogg_fault(path))
    if magic[:3] == b"ID3" or (path.suffix.lower() == ".mp3" and magic[:4] != b"fLaC"):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_mp3(data)
    return Container()


def _chunk_fault(path: Path, magic: bytes) -> tuple[str, str] | None:
    """RIFF (WAV) and FORM (AIFF) state their size; a second one behind it is another recording."""
    stated = int.from_bytes(magic[4:8], "little" if magic[:4] == b"RIFF" else "big") + 8
    there = path.stat().st_size
    if not 12 <= stated < _UNKNOWN_SIZE:
        return None
    if there < stated - 1:  # some programs leave out the last padding byte
        return "incomplete", f"it is cut off at {there} bytes of the {stated} that its header states"
    with open(path, "rb") as file:
        file.seek(stated)
        follows = file.read(4)
    return _SEVERAL if follows == magic[:4] else None


def _ogg_fault(path: Path) -> tuple[str, str] | None:
    """The last page of a stream is marked; a first page after it begins another stream."""
    sounding = ended = False
    size = path.stat().st_size
    with open(path, "rb") as file:
        while header := file.read(_OGG_PAGE_HEADER):
            if len(header) < _OGG_PAGE_HEADER or header[:4] != b"OggS":
                return None if ended else ("incomplete", "it is cut off or damaged between two Ogg pages")
            lengths = file.read(header[26])
            file.seek(sum(lengths), os.SEEK_CUR)
            if len(lengths) < header[26] or file.tell() > size:
                return "incomplete", "it is cut off within its last Ogg page"
            if header[5] & _OGG_FIRST and sounding:
                return _SEVERAL
            sounding = sounding or not header[5] & _OGG_FIRST
            ended = bool(header[5] & _OGG_LAST)
    return None if ended else ("incomplete", "it is cut off: its last Ogg page is not marked as the last")


def _read_mp3(data: mmap.mmap) -> Container:
    """The duration by MPEG frames, and whether the sample rate changes on the way, where decoders stop."""
    runs: list[list[int]] = []  # sample rate, frames, samples
    expected = -1
    for position, size, rate, samples in _mpeg_frames(data):
        if not runs or position != expected or runs[-1][0] != rate:
            runs.append([rate, 0, 0])
        runs[-1][1] += 1
        runs[-1][2] += samples
        expected = position + size
    runs = [run for run in runs if run[1] >= _MIN_FRAMES]
    rates = list(dict.fromkeys(run[0] for run in runs))
    if len(rates) > 1:
        change = f"the sample rate changes from {rates[0]} to {rates[1]} Hz on the way: split it"
        return Container(fault=("several recordings", change))
    return Container(seconds=sum(run[2] for run in runs) / rates[0] if rates else None)


def _mpeg_frames(data: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Position, bytes, sample rate and samples of every layer III frame; what is between frames is passed over."""
    position = _id3_size(data)
    expected = -1
    while 0 <= position <= len(data) - 4:
        frame = _mpeg_frame(data, position)
        # Away from where the last frame ended, only a frame that another follows is taken for one.
        if frame and (position == expected or _mpeg_frame(data, position + frame[0])):
            yield position, *frame
            expected = position = position + frame[0]
        else:
            position = data.find(b"\xff", position + 1)


def _id3_size(data: mmap.mmap) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _mpeg_frame(data: mmap.mmap, position: int) -> tuple[int, int, int] | None:
    """Bytes, sample rate and samples of the layer III frame at a position, if one begins there."""
    if position + 4 > len(data):
        return None
    first, second, third = data[position : position + 3]
    version, layer = second >> 3 & 3, second >> 1 & 3
    bitrate, rate = third >> 4, third >> 2 & 3
    if first != 0xFF or second < 0xE0 or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    hertz, is_mpeg_1 = _RATES[version][rate], version == 3
    size = (144 if is_mpeg_1 else 72) * _LAYER_3_KBPS[is_mpeg_1][bitrate] * 1000 // hertz + (third >> 1 & 1)
    return size, hertz, 1152 if is_mpeg_1 else 576
