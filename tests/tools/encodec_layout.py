"""Writes tests/encodec_layout.json: name and shape of every tensor that the EncodecModel class of transformers saves.

    python tests/tools/encodec_layout.py

It needs transformers and torch, which nothing else here does.
"""

import json
from pathlib import Path

LAYOUT = Path(__file__).parents[1] / "encodec_layout.json"


def layout_of_transformers() -> dict[str, list[int]]:
    """Name and shape of every tensor, by name; the class's defaults are the 24 kHz model."""
    from transformers import EncodecConfig, EncodecModel

    return {name: list(tensor.shape) for name, tensor in sorted(EncodecModel(EncodecConfig()).state_dict().items())}


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in layout_of_transformers().items()]
    LAYOUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
