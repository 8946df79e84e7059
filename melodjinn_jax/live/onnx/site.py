"""The static site: the page, the model as ONNX files, the runtime, and a manifest with the digest of each."""

import hashlib
import importlib.resources
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from melodjinn_jax.errors import UserError
from melodjinn_jax.live.keys import holds_keys, label_keys
from melodjinn_jax.live.onnx.graph import Weights
from melodjinn_jax.live.performance import Prompt
from melodjinn_jax.live.session import model_digest
from melodjinn_jax.live.stream import MAX_PRIMING_FRAMES
from melodjinn_jax.training.run import Run

FORMAT, FORMAT_VERSION = "melodjinn-site", 1
MANIFEST = "manifest.json"
_SERVED = '<meta name="melodjinn-engine" content="server">'
_ALONE = '<meta name="melodjinn-engine" content="browser">'


def page_files() -> dict[str, bytes]:
    """The page's files by name, as a server sends them."""
    folder = importlib.resources.files("melodjinn_jax.live") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def describe(run: Run, weights: Weights, prompt: Prompt) -> dict[str, Any]:
    """The manifest without its files: what the page must know of the model, and the prompt of every stream."""
    config, codec, actions = run.config.dynamics, run.codec, run.action_space
    names = label_keys(run.workdir.path, actions.num_keys)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": run.config.name,
        "sample_rate": codec.sample_rate,
        "hop_length": codec.hop_length,
        "action_stride": actions.stride,
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
        "keys": [{"key": key, "name": name} for key, name in enumerate(names)],
        "hold": holds_keys(run.config),
        "settings": {"temperature": run.config.evaluation.temperature, "strength": run.config.evaluation.strength},
        "digests": {
            "model": model_digest(run.state["dynamics"]),
            "codec": codec.digest,
            "action_space": actions.digest,
        },
        "dynamics": {
            "null_action": run.models.num_codes,
            "priming_frames": min(config.window * config.num_layers, MAX_PRIMING_FRAMES),
        },
        "codec": {"kind": codec.kind, "start_frames": codec.start_frames},
        "prompt": {"codes": prompt.codes.tolist(), "actions": prompt.actions.tolist()},
        "weights": weights,
        "made_with": {"step": run.step, **{name: version(name) for name in ("jax", "onnx", "melodjinn-jax")}},
    }


def write_site(
    output: Path,
    description: dict[str, Any],
    models: dict[str, onnx.ModelProto],
    runtime: dict[str, bytes],
) -> int:
    """Write the site's folder, whole or not at all; an older site of the same name is replaced. Returns its bytes.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    if output.exists() and any(output.iterdir()) and not (output / "model" / MANIFEST).exists():
        raise UserError(f"--output {output} holds other files: give an empty folder, or one of an earlier export")
    binary = {f"model/{name}": model.SerializeToString() for name, model in models.items()}
    binary |= {f"runtime/{name}": content for name, content in runtime.items()}
    listed = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in binary.items()}
    files = page_files() | binary
    files["index.html"] = files["index.html"].decode().replace(_SERVED, _ALONE).encode()
    files[f"model/{MANIFEST}"] = (json.dumps({**description, "files": listed}, indent=1) + "\n").encode()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        try:
            for name, content in files.items():
                (scratch / name).parent.mkdir(exist_ok=True)
                (scratch / name).write_bytes(content)
            scratch.chmod(0o755)
            if output.exists():
                shutil.rmtree(output)
            scratch.rename(output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    return sum(map(len, files.values()))
