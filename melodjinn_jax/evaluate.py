"""Evaluate a trained run: `python -m melodjinn_jax.evaluate --workdir DIR` writes eval.json, samples/, report.html."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.data.prepare import hits_of, load_one_shots
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.losses import held_out_losses
from melodjinn_jax.evaluation.music import evaluate_music, load_held_out_music
from melodjinn_jax.evaluation.onsets import Onset, OnsetDetector
from melodjinn_jax.evaluation.report import write_report
from melodjinn_jax.evaluation.samples import write_music_samples, write_samples
from melodjinn_jax.evaluation.suite import Evaluator, HeldOut
from melodjinn_jax.experiment import command_line, parse_arguments, value_of
from melodjinn_jax.training.run import Run, check_held_out, load_run, tune_process
from melodjinn_jax.training.state import count_parameters
from melodjinn_jax.training.workdir import load_config
from melodjinn_jax.validation import check_config


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a trained run on held-out clips, and write its report."""

    workdir: str
    """Work directory of the run."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def evaluate_run(path: str, config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a work directory; returns what `eval.json` holds.

    With `config.generate` false there are neither samples nor a report.

    Raises:
      UserError: the run cannot be loaded or the results cannot be written.
    """
    run = load_run(path)
    # Whatever plays for the report does so as what is measured.
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, evaluation=config))
    print(f"evaluating step {run.step} on at most {config.clips} clips of the {config.split} split", file=sys.stderr)
    data = run.open_data()
    example: dict[str, Any] | None = None
    if config.generate:
        measures, example = (_measure_music if run.config.data.datasets else _measure_drums)(run, data, config)
    else:
        measures = _measure_losses(run, data, config)
    results = {
        "step": run.step,
        "phase": str(run.record.phase),
        "freeze_step": run.record.freeze_step,
        "freeze_reason": run.record.freeze_reason,
        "freeze_agreement": run.record.looks[-1].agreement if run.record.looks else None,
        "split": config.split,
        "strength": config.strength,
        "parameters": {name: count_parameters(run.state[name]) for name in ("lam", "dynamics") if name in run.state},
        **measures,
    }
    try:
        write_atomically(run.workdir.evaluation, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        if example is not None:
            (write_music_samples if run.config.data.datasets else write_samples)(run, example, results)
    except OSError as error:
        raise UserError(f"the evaluation cannot be written to {path}: {error.strerror}") from error
    if example is None:
        print(f"wrote {run.workdir.evaluation}", file=sys.stderr)
        return results
    write_report(run.workdir)
    print(f"wrote {run.workdir.evaluation} and {run.workdir.report}", file=sys.stderr)
    return results


def _measure_drums(run: Run, data: Mixture, config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    (dataset,) = data.datasets
    if run.action_space.stride != 1:
        raise UserError(
            f"{run.workdir.path}: its actions last {run.action_space.stride} frames, and the evaluation of drums knows "
            "only 1; --evaluation.generate false measures the losses"
        )
    drums = load_one_shots(dataset)
    detector = OnsetDetector(drums.waveforms, run.codec.sample_rate, run.codec.hop_length)
    evaluator = Evaluator(run.models, run.state, run.codec, detector, config)
    measures, example = evaluator.run(load_held_out(dataset, config))
    return {"drums": list(drums.names), **measures}, example


def _measure_music(run: Run, data: Mixture, config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    check_held_out(data, config, run.action_space.stride)
    return evaluate_music(run, load_held_out_music(run, data, config), config)


def _measure_losses(run: Run, data: Mixture, config: EvaluationConfig) -> dict[str, Any]:
    check_held_out(data, config, run.action_space.stride)
    return held_out_losses(run, data, config)


def load_held_out(dataset: Dataset, config: EvaluationConfig) -> HeldOut:
    """The first clips of the held-out split, cut to the length to evaluate."""
    split = dataset.load_split(config.split, config.clips)
    hop = dataset.info.hop_length
    hits = [
        [Onset(hit.sample / hop, hit.drum, hit.gain) for hit in hits_of(truth) if hit.sample < config.frames * hop]
        for truth in split["ground_truth"]
    ]
    return HeldOut(
        np.ascontiguousarray(split["waveform"][:, : config.frames]), split["codes"][:, : config.frames], hits
    )


@reports_user_errors
def main() -> None:
    argv = command_line()
    prog = "python -m melodjinn_jax.evaluate"
    # The run's own settings are the defaults, so they must be known before the rest is parsed.
    path = value_of(argv, "--workdir")
    default = EvaluateArguments(path, load_config(path).evaluation) if path else None
    arguments = parse_arguments(EvaluateArguments, argv, prog=prog, default=default)
    config = dataclasses.replace(load_config(arguments.workdir), evaluation=arguments.evaluation)
    check_config(config)
    tune_process(config.runtime.compile_cache)
    results = evaluate_run(arguments.workdir, arguments.evaluation)
    print(json.dumps({name: value for name, value in results.items() if isinstance(value, (int, float, str, bool))}))


if __name__ == "__main__":
    sys.exit(main())
