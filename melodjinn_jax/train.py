"""Train an experiment: `python -m melodjinn_jax.train --config experiments/toy_drums.py --workdir DIR`.

The same command again resumes. Read top to bottom; nothing here knows a model's name.
"""

import io
import sys

import jax

from melodjinn_jax.codecs import Codec, require_same_codec
from melodjinn_jax.config import Config
from melodjinn_jax.data.loader import BatchIterator, Hear, HostShare, training_iterator
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.evaluate import evaluate_run
from melodjinn_jax.evaluation.losses import HeldOutLosses
from melodjinn_jax.experiment import command_line, parse_train_arguments
from melodjinn_jax.models.action_space import ActionSpace
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.goodput import WallTime
from melodjinn_jax.training.hosts import is_primary, join_hosts, leave_together, primary_first
from melodjinn_jax.training.labelled import require_same_actions
from melodjinn_jax.training.mesh import host_share, open_mesh, place_batches
from melodjinn_jax.training.metrics import MetricsWriter, Progress
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.profile import StepProfile
from melodjinn_jax.training.run import (
    Machine,
    hearing,
    initial_parameters,
    make_machine,
    make_models,
    prepare_data,
    tune_process,
)
from melodjinn_jax.training.saving import Saves
from melodjinn_jax.training.speed import SpeedMeter
from melodjinn_jax.training.state import State, abstract_state
from melodjinn_jax.training.step import make_train_step
from melodjinn_jax.training.step_log import StepLog
from melodjinn_jax.training.stop import StopSignal
from melodjinn_jax.training.workdir import WorkDir


def train(config: Config, workdir: WorkDir, data: Mixture, codec: Codec, init_from: str = "") -> int:
    """Train on the mesh in scope until the last step or a stop signal; returns the exit status of the process."""
    wall_time, mesh = WallTime(), jax.sharding.get_mesh()
    models = make_models(config, codec)
    machine = make_machine(models, data, codec)
    share = host_share(mesh)
    display = sys.stderr if is_primary() else io.StringIO()
    hear = None if data.labels else hearing(config, codec)
    batches = open_batches(config, data, share, hear)
    measures_held_out = bool(config.data.datasets) and config.runtime.evaluate
    held_out = HeldOutLosses(models, data, codec).measure if measures_held_out else None
    train_steps = {}
    with CheckpointStore(workdir.checkpoints, config.runtime.keep_checkpoints) as store, StopSignal() as stop:
        labels = data.action_space if data.labels else None
        state, record, step, is_resumed = restore_or_start(machine, store, batches, codec, init_from, labels)
        with (
            MetricsWriter(workdir.metrics if is_primary() else None, step if is_resumed else None) as metrics,
            Progress(config.training.steps, step, config.runtime.progress, display) as progress,
        ):
            log = StepLog(config, metrics, progress, SpeedMeter(models, wall_time), step)
            profile = StepProfile(workdir.profile, config.runtime.profile_steps)
            saved_step = step if is_resumed else None
            saves = Saves(store, machine, codec, batches, log, wall_time, held_out, saved_step)
            wall_time.starts()
            while step < config.training.steps and not stop.requested():
                size = steps_together(config, step)
                is_new = (record.phase, size) not in train_steps
                if is_new:
                    train_steps[record.phase, size] = make_train_step(models, record.phase, size, codec)
                if hear:  # decoding would wait for the step under way, which is not the data's fault
                    jax.block_until_ready(state)
                with wall_time.losing("data"):
                    rows = [next(batches) for _ in range(size)]
                    batch = place_batches(rows, mesh, share)
                profile.before(step + 1, step + size)
                # The first call of a step compiles it, for which the constants of a codec come to the host. Else no
                # step may move anything between host and device by itself.
                with wall_time.losing("compile") if is_new else jax.transfer_guard("disallow"):
                    state, values = train_steps[record.phase, size](state, batch)
                step += size
                profile.after(step, state)
                log.step(step, record.phase, values, rows[-1])
                # The machine looks at the state of steps that are done: before the save, so that a resumed run
                # finds itself after the switch and not before it.
                before = record
                if machine.is_due(record, step):
                    jax.block_until_ready(state)
                    with wall_time.losing("looks"):
                        state, record = machine.advance(state, record, step)
                    log.phases(step, before, record)
                if record.phase is not before.phase or step % config.runtime.save_every == 0:
                    saves.save(step, state, record)
            profile.close(state)
            saves.save(step, state, record)
        batches.close()
    if stop.exit_status and is_primary():
        print(f"stopped at step {step}; the same command resumes", file=sys.stderr)
    return stop.exit_status


def open_batches(config: Config, data: Mixture, share: HostShare, hear: Hear | None) -> BatchIterator:
    """This host's share of the run's batches, from the first on."""
    return training_iterator(
        data,
        batch_size=config.training.batch_size,
        crop_frames=config.training.crop_frames,
        seed=config.seed,
        stride=config.latent_actions.action_stride,
        share=share,
        fields=("codes",) if data.labels else ("waveform", "codes"),
        hear=hear,
        workers=config.runtime.data_workers,
    )


def steps_together(config: Config, step: int) -> int:
    """Steps of the next dispatch: those asked for, but one by one until they end where `validation` has them end."""
    wanted = config.runtime.steps_per_dispatch
    return 1 if step % wanted else wanted


def restore_or_start(
    machine: Machine,
    store: CheckpointStore,
    batches: BatchIterator,
    codec: Codec,
    init_from: str,
    labels: ActionSpace | None,
) -> tuple[State, PhaseRecord, int, bool]:
    """The newest good checkpoint's state, record and step, or those of a new run; and whether it is resumed."""
    checkpoint = store.latest()
    if checkpoint is None:
        given, is_frozen = initial_parameters(init_from, machine.models, codec, labels) if init_from else ({}, False)
        return *machine.start(given, is_frozen), 0, False
    metadata = checkpoint.metadata
    require_same_codec(metadata["codec_digest"], codec, f"the checkpoint of step {checkpoint.step}")
    if labels:
        require_same_actions(metadata, labels, f"the checkpoint of step {checkpoint.step}")
    state = store.load(checkpoint.step, abstract_state(machine.models, metadata["parts"]), batches)
    return state, PhaseRecord.from_json(metadata["phase"]), checkpoint.step, True


@reports_user_errors
def main() -> int:
    arguments = parse_train_arguments(command_line())
    config = arguments.settings
    tune_process(config.runtime.compile_cache)
    if config.runtime.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.runtime.cpu_devices)
    join_hosts()
    mesh = open_mesh(config)
    with primary_first(lambda: WorkDir.create_or_open(arguments.workdir, config)) as workdir:
        for change in workdir.changes:
            print(f"changed since the last start: {change}", file=sys.stderr)
        data, codec = primary_first(
            lambda: prepare_data(config, workdir, lambda line: print(line, file=sys.stderr)),
        )
        with jax.set_mesh(mesh):
            status = train(config, workdir, data, codec, arguments.init_from)
    leave_together()
    if status == 0 and config.runtime.evaluate and is_primary():
        evaluate_run(arguments.workdir, config.evaluation)
    return status


if __name__ == "__main__":
    sys.exit(main())
