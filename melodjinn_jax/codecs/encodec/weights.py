"""The published weights of the 24 kHz EnCodec: from the Hub or a safetensors file, checked, weight norms folded.

The file has the layout of the EncodecModel class of the transformers library, and comes in two spellings of the weight
norm: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and `original1`. Folded, they are `weight`.
"""

import re
from pathlib import Path

import numpy as np

from melodjinn_jax.codecs.encodec.model import (
    BLOCK_KERNEL,
    CHANNELS,
    CODEBOOK_SIZE,
    DEEP_CHANNELS,
    KERNEL,
    LATENT_DIM,
    LSTM_LAYERS,
    MAX_CODEBOOKS,
    STRIDES,
)
from melodjinn_jax.errors import UserError

HUB_ID = "facebook/encodec_24khz"
HUB_FILE = "model.safetensors"

_GAIN = re.compile(r"\.(weight_g|parametrizations\.weight\.original0)$")
_DIRECTION = re.compile(r"\.(weight_v|parametrizations\.weight\.original1)$")
# What only the training of the codebooks needs.
_UNUSED = re.compile(r"quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)$")


def layout(num_codebooks: int = MAX_CODEBOOKS) -> dict[str, tuple[int, ...]]:
    """Name and shape of every folded tensor."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, width_out: int, width_in: int, length: int, transposed: bool = False) -> None:
        shapes[f"{name}.weight"] = (width_in, width_out, length) if transposed else (width_out, width_in, length)
        shapes[f"{name}.bias"] = (width_out,)

    def add_block(name: str, width: int) -> None:
        add(f"{name}.block.1.conv", width // 2, width, BLOCK_KERNEL)
        add(f"{name}.block.3.conv", width, width // 2, 1)
        add(f"{name}.shortcut.conv", width, width, 1)

    def add_lstm(name: str) -> None:
        for i in range(LSTM_LAYERS):
            for part in ("ih", "hh"):
                shapes[f"{name}.lstm.weight_{part}_l{i}"] = (4 * DEEP_CHANNELS, DEEP_CHANNELS)
                shapes[f"{name}.lstm.bias_{part}_l{i}"] = (4 * DEEP_CHANNELS,)

    add("encoder.layers.0.conv", CHANNELS, 1, KERNEL)
    add("decoder.layers.0.conv", DEEP_CHANNELS, LATENT_DIM, KERNEL)
    for i, stride in enumerate(STRIDES):
        width = CHANNELS << i
        add_block(f"encoder.layers.{1 + 3 * i}", width)
        add(f"encoder.layers.{3 + 3 * i}.conv", 2 * width, width, 2 * stride)
        mirrored = len(STRIDES) - 1 - i
        add(f"decoder.layers.{3 + 3 * mirrored}.conv", width, 2 * width, 2 * stride, transposed=True)
        add_block(f"decoder.layers.{4 + 3 * mirrored}", width)
    add_lstm("encoder.layers.13")
    add_lstm("decoder.layers.1")
    add("encoder.layers.15.conv", LATENT_DIM, DEEP_CHANNELS, KERNEL)
    add("decoder.layers.15.conv", 1, CHANNELS, KERNEL)
    shapes |= {f"quantizer.layers.{q}.codebook.embed": (CODEBOOK_SIZE, LATENT_DIM) for q in range(num_codebooks)}
    return shapes


def read_weights(path: str | Path | None = None) -> dict[str, np.ndarray]:
    """Folded float32 weights by name, those of `layout()`, from a safetensors file or, without one, from the Hub.

    Raises `UserError` if the file cannot be had or read, or is not of this model, naming the tensor.
    """
    file = Path(path) if path is not None else _from_hub()
    return fold(read_tensors(file), file)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as they are. Raises `UserError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise UserError(f"{file} is not a file: give the {HUB_FILE} of {HUB_ID}")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no readable safetensors file: download that of {HUB_ID} again") from error


def fold(tensors: dict[str, np.ndarray], file: str | Path) -> dict[str, np.ndarray]:
    """Published tensors as the weights of `layout()`. Raises `UserError`, naming `file` and the first odd tensor."""
    folded: dict[str, np.ndarray] = {}
    gains = {_GAIN.sub("", name): tensors[name] for name in tensors if _GAIN.search(name)}
    for name, tensor in tensors.items():
        if _GAIN.search(name) or _UNUSED.search(name):
            continue
        if _DIRECTION.search(name):
            name = _DIRECTION.sub("", name)
            gain = gains.pop(name, None)
            if gain is None or gain.shape != (len(tensor), *[1] * (tensor.ndim - 1)):
                raise _not_encodec(file, f"{name} has the direction of a weight norm without a gain that fits it")
            tensor = _scaled(tensor, gain)
            name = f"{name}.weight"
        folded[name] = np.asarray(tensor, np.float32)
    if gains:
        raise _not_encodec(file, f"{min(gains)} has the gain of a weight norm without its direction")
    _check(folded, file)
    return folded


def _scaled(direction: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """gain * direction / |direction|, for each first index by itself."""
    exact = direction.astype(np.float64)
    norm = np.sqrt((exact**2).sum(axis=tuple(range(1, exact.ndim)), keepdims=True))
    return gain * exact / np.maximum(norm, np.finfo(np.float32).tiny)


def _check(folded: dict[str, np.ndarray], file: str | Path) -> None:
    shapes = layout()
    for name, shape in shapes.items():
        if name not in folded:
            raise _not_encodec(file, f"{name} is missing")
        if folded[name].shape != shape:
            raise _not_encodec(file, f"{name} has the shape {list(folded[name].shape)} instead of {list(shape)}")
        if not np.isfinite(folded[name]).all():
            raise _not_encodec(file, f"{name} holds numbers that are not finite")
    if unknown := folded.keys() - shapes.keys():
        raise _not_encodec(file, f"it holds {min(unknown)}")


def _not_encodec(file: str | Path, reason: str) -> UserError:
    return UserError(f"{file} does not hold the weights of {HUB_ID} ({reason}): give its {HUB_FILE}")


def _from_hub() -> Path:
    """The published file in the Hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_ID, HUB_FILE))
    except Exception as error:  # its own, those of two HTTP libraries, and of the file system
        raise UserError(
            f"the weights {HUB_ID} cannot be downloaded ({type(error).__name__}): "
            f"check the network, or give a local copy of {HUB_FILE} with --codec-weights FILE"
        ) from error
