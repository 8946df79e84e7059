"""The `encodec` package (extra `encodec`, licence CC BY-NC 4.0) behind a codec's methods, to compare with.

Nothing imports this but what asks for the reference: it brings torch.
"""

import re
import sys
import types
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from melodjinn_jax.codecs.encodec.codec import BANDWIDTHS
from melodjinn_jax.codecs.encodec.model import HOP_LENGTH, SAMPLE_RATE
from melodjinn_jax.errors import UserError

# Its names by the published ones.
_NAMES = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"^(decoder\.model\.(?:3|6|9|12))\.conv\.", r"\1.convtr.convtr."),
    (r"(?<!\.convtr)\.conv\.", ".conv.conv."),
    (r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
)


class ReferenceCodec:
    """The reference with given weights: `encode` and `decode` as those of a `Codec`."""

    sample_rate = SAMPLE_RATE
    hop_length = HOP_LENGTH

    def __init__(self, tensors: Mapping[str, np.ndarray], bandwidth: float):
        """`tensors` by their published names, unfolded. Raises `UserError` if the reference is not installed."""
        self._torch, encodec = _import_reference()
        self.num_codebooks = BANDWIDTHS[bandwidth]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*weight_norm.*deprecated.*", category=FutureWarning)
            self.model: Any = encodec.EncodecModel.encodec_model_24khz(pretrained=False).eval()
        state = {_name_in_reference(name): self._torch.tensor(tensor) for name, tensor in tensors.items()}
        self.model.load_state_dict(state)
        self.model.set_target_bandwidth(bandwidth)

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [B, F * H] -> codes int32 [B, F, Q]."""
        with self._torch.inference_mode():
            [(codes, _)] = self.model.encode(self._torch.tensor(waveform)[:, None])
        return codes.numpy().transpose(0, 2, 1).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [B, F, Q] -> float32 [B, F * H]."""
        frames = self._torch.tensor(np.asarray(codes, np.int64).transpose(0, 2, 1))
        with self._torch.inference_mode():
            return self.model.decode([(frames, None)])[:, 0].numpy()

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        """Latents float32 [B, F, Z] of a waveform [B, F * H], before quantisation."""
        with self._torch.inference_mode():
            return self.model.encoder(self._torch.tensor(waveform)[:, None]).numpy().transpose(0, 2, 1)


def _name_in_reference(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _import_reference() -> tuple[Any, Any]:
    """The modules torch and encodec. encodec imports torchaudio, which its model never uses and which does not load
    beside a CPU build of torch: an empty module stands for it meanwhile."""
    stands_in = "torchaudio" not in sys.modules
    if stands_in:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        import encodec
        import torch
    except ImportError as error:
        raise UserError(
            "the reference EnCodec is not installed: pip install torch, then pip install 'melodjinn-jax[encodec]'"
        ) from error
    finally:
        if stands_in:
            del sys.modules["torchaudio"]
    return torch, encodec
