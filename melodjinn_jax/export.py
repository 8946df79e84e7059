"""A site that plays a run in the visitor's browser: `python -m melodjinn_jax.export --workdir DIR --output site/`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from melodjinn_jax.codecs.base import read_codec_files
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.live.performance import Prompt
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.training.run import Run, load_run, tune_process

try:
    from melodjinn_jax.live.onnx.codecs import decoder_graph
    from melodjinn_jax.live.onnx.dynamics import frame_graph
    from melodjinn_jax.live.onnx.graph import Weights
    from melodjinn_jax.live.onnx.player import compare
    from melodjinn_jax.live.onnx.runtime import runtime_files
    from melodjinn_jax.live.onnx.site import describe, write_site
except ModuleNotFoundError as missing:
    if missing.name not in ("onnx", "onnxruntime"):
        raise
    sys.exit(f'error: the export needs {missing.name}: pip install -e ".[export]"')

CHECKED_FRAMES = 300
TOLERANCE = 1e-3
"""Of logits and sound in float32; what is stored in fewer bits differs by its rounding, which is printed."""


@dataclass(frozen=True)
class ExportArguments:
    """Make a static site that plays a run in the visitor's browser, from any plain file server."""

    workdir: str
    """Work directory of a trained run."""
    output: str
    """Folder of the site; one of an earlier export is replaced."""
    weights: Weights = "float32"
    """How the matrices are stored: fewer bits are a smaller download and more rounding, measured and printed."""
    prompt: str = ""
    """Recording that every stream starts from; empty: silence."""
    runtime: str = ""
    """Folder with the files of ONNX Runtime Web; empty: npm fetches them once."""


def export_site(run: Run, output: Path, weights: Weights, prompt: Prompt, runtime: dict[str, bytes]) -> None:
    """Convert, compare with JAX, write, and print what came of it. Raises `UserError` if the comparison fails."""
    codec = run.codec
    dynamics = frame_graph(
        run.config.dynamics,
        run.state["dynamics"],
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        weights=weights,
    )
    decoder = decoder_graph(codec, read_codec_files(run.workdir.codec)[1], weights)
    found = compare(run, dynamics, decoder, CHECKED_FRAMES)
    if weights == "float32" and max(found.logits, found.sound) > TOLERANCE:
        raise UserError(
            f"the exported model is not the trained one: over {CHECKED_FRAMES} frames logits differ by "
            f"{found.logits:.1e} and sound by {found.sound:.1e}; other versions of onnx and onnxruntime may mend it"
        )
    print(
        f"against JAX over {CHECKED_FRAMES} frames: logits differ by at most {found.logits:.1e}, "
        f"the likeliest code in {100 * found.codes:.2f}% of tokens, sound by at most {found.sound:.1e}"
    )
    models = {"dynamics.onnx": dynamics, "decoder.onnx": decoder}
    total = write_site(output, describe(run, weights, prompt), models, runtime)
    model_size = sum(model.ByteSize() for model in models.values())
    print(f"{output}: {total / 1e6:.1f} MB, of them the model {model_size / 1e6:.2f} MB")


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(ExportArguments, command_line(), prog="python -m melodjinn_jax.export")
    run = load_run(arguments.workdir)
    tune_process(run.config.runtime.compile_cache)
    runtime = runtime_files(arguments.runtime)
    prompt = make_prompt(run, arguments.prompt)
    export_site(run, Path(arguments.output).expanduser(), arguments.weights, prompt, runtime)


if __name__ == "__main__":
    sys.exit(main())
