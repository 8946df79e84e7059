"""Neural codecs: waveforms to codes and back."""

from pathlib import Path

from melodjinn_jax.codecs.base import Codec, CodecState, read_codec_files, require_same_codec
from melodjinn_jax.codecs.encodec import EncodecCodec
from melodjinn_jax.codecs.fit import fit_codec
from melodjinn_jax.codecs.fitted import FittedCodec
from melodjinn_jax.codecs.music import MusicCodec
from melodjinn_jax.errors import UserError

__all__ = [
    "Codec",
    "CodecState",
    "EncodecCodec",
    "FittedCodec",
    "MusicCodec",
    "fit_codec",
    "load_codec",
    "require_same_codec",
]

_KINDS: dict[str, type[Codec]] = {codec.kind: codec for codec in (FittedCodec, MusicCodec, EncodecCodec)}


def load_codec(folder: str | Path) -> Codec:
    """The codec that `Codec.save` wrote into a folder. Raises `UserError` if it is missing, damaged or unknown."""
    header, arrays = read_codec_files(Path(folder))
    kind = _KINDS.get(header["kind"])
    if kind is None:
        raise UserError(
            f"{folder} holds a codec of the kind {header['kind']!r}, which this version does not know: update melodjinn"
        )
    return kind.from_arrays(header, arrays)
