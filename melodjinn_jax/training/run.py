"""A run as it lies in its work directory: what starts, continues, evaluates and plays it share this."""

import ctypes
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import Codec, load_codec, require_same_codec
from melodjinn_jax.config import Config, EvaluationConfig
from melodjinn_jax.data.audio import to_int16
from melodjinn_jax.data.dataset import Dataset, open_dataset
from melodjinn_jax.data.loader import Hear, training_iterator
from melodjinn_jax.data.mixture import Mixture, open_mixture
from melodjinn_jax.data.prepare import prepare_toy_drums
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import ActionSpace
from melodjinn_jax.models.dynamics import strengthen
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.labelled import LabelledMachine, require_same_actions
from melodjinn_jax.training.phases import PhaseMachine, PhaseRecord
from melodjinn_jax.training.state import CodecShape, Models, Phase, State, abstract_state
from melodjinn_jax.training.workdir import WorkDir, load_config

LAM_PARTS = ("lam", "feature_scale")
CODEBOOK_PARTS = ("codebook", "key_of_code")
PROBE_SEED = 1 << 31  # beyond the seeds that a run may have, so that the probe set is no batch of its

Machine = PhaseMachine | LabelledMachine


def tune_process(compile_cache: str) -> None:
    """Settings of this process: a folder for compiled programs (empty: none), and memory that is used again."""
    if compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(compile_cache).expanduser()))
        # Small programs too: a toy run is made of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # On a CPU every step allocates its temporaries anew. By default glibc hands large blocks back to the kernel
        # each time and has them zeroed again, which costs a third of the speed: so no block is mapped apart, nothing
        # is handed back, and all threads share one arena, for those of further threads hold no more than 64 MB.
        trim_threshold, mmap_max, arena_max = -1, -4, -8
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def dataset_path(config: Config, workdir: Path) -> Path:
    return Path(config.data.path) if config.data.path else workdir / "dataset"


def open_data(config: Config, workdir: Path) -> Mixture:
    """The run's DATASETs and labels, which must be there. Raises `UserError` if they are not."""
    data = config.data
    if not data.datasets:
        return Mixture((open_dataset(dataset_path(config, workdir)),))
    return open_mixture(data.datasets, data.weights, data.actions)


def prepare_data(config: Config, workdir: WorkDir, progress: Callable[[str], None]) -> tuple[Mixture, Codec]:
    """The run's data, the drum world prepared if it is not there, and the codec, copied into the work directory.

    Raises:
      UserError: a DATASET cannot be had, or the work directory's codec is another one.
    """
    if not config.data.datasets:
        prepare_toy_drums(config.data, config.codec, dataset_path(config, workdir.path), progress)
    data = open_data(config, workdir.path)
    if not workdir.codec.exists():
        unfinished = workdir.codec.with_name("codec.copying")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(data.datasets[0].codec_folder, unfinished)
        unfinished.rename(workdir.codec)
    codec = load_codec(workdir.codec)
    check_codecs(data, codec)
    if config.data.datasets and config.runtime.evaluate:
        check_held_out(data, config.evaluation, config.latent_actions.action_stride)
    return data, codec


def check_held_out(data: Mixture, evaluation: EvaluationConfig, stride: int) -> None:
    """Raise `UserError` unless recordings hold what the evaluation needs; better before the training than after."""
    data.require_split(evaluation.split)
    frames = data.crop_frames(stride)
    if evaluation.frames > frames:
        raise UserError(
            f"evaluation.frames is {evaluation.frames}: the records of data.datasets have only {frames} to cut it from"
        )


def check_codecs(data: Mixture, codec: Codec) -> None:
    for dataset in data.datasets:
        check_codec(dataset, codec)


def hearing(config: Config, codec: Codec) -> Hear | None:
    """What makes of codes the sound that the run's LAM hears; None if it hears recordings as they are."""
    if config.latent_actions.hears == "recording":
        return None

    def hear(codes: np.ndarray) -> np.ndarray:
        return to_int16(codec.decode(codes)).reshape(*codes.shape[:2], codec.hop_length)

    return hear


def make_machine(models: Models, data: Mixture, codec: Codec) -> Machine:
    """What says in which phase the run is; of one that discovers its actions, over a fixed set of training clips."""
    config = models.config
    if data.labels:
        return LabelledMachine(models, data.action_space)
    clips = config.phases.probe_clips
    if not config.data.datasets:
        return PhaseMachine(models, data.datasets[0].load_split("train", clips)["waveform"])
    draw = training_iterator(
        data,
        batch_size=clips,
        crop_frames=models.probe_frames,
        seed=PROBE_SEED,
        stride=config.latent_actions.action_stride,
        fields=("waveform", "codes"),
        hear=hearing(config, codec),
    )
    return PhaseMachine(models, next(draw)["waveform"])


def check_codec(dataset: Dataset, codec: Codec) -> None:
    """Raise `UserError` unless a DATASET, the codec in it and a run's codec are one."""
    require_same_codec(dataset.info.codec_digest, load_codec(dataset.codec_folder), f"the DATASET {dataset.path}")
    require_same_codec(dataset.info.codec_digest, codec, f"the DATASET {dataset.path}")


def make_models(config: Config, codec: Codec) -> Models:
    shape = CodecShape(codec.sample_rate, codec.hop_length, codec.num_codebooks, codec.codebook_size)
    return Models(config, shape)


@dataclass(frozen=True)
class Run:
    """A trained run, loaded to evaluate or play it."""

    workdir: WorkDir
    config: Config
    codec: Codec
    models: Models
    step: int
    record: PhaseRecord
    action_space: ActionSpace
    state: State
    """`dynamics` (the moving average of its weights, if the run keeps one), and of a run that has a LAM `lam`,
    `feature_scale`, `codebook` and `key_of_code`."""

    @property
    def has_lam(self) -> bool:
        return "lam" in self.state

    @property
    def played_dynamics(self) -> Any:
        """Parameters of the dynamics model under which actions have the strength at which the run is evaluated."""
        return strengthen(self.state["dynamics"], self.models.num_codes, self.config.evaluation.strength)

    def heard(self, recording: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """What the LAM hears, [B, F, H], of a recording of that shape with the codes [B, F, Q]."""
        hear = hearing(self.config, self.codec)
        return recording if hear is None else hear(codes)

    def open_data(self) -> Mixture:
        """The run's DATASETs, checked to be of the run's codec."""
        data = open_data(self.config, self.workdir.path)
        check_codecs(data, self.codec)
        return data


def load_run(path: str) -> Run:
    """The newest good checkpoint of a work directory.

    Raises:
      UserError: there is none, or it cannot play yet, or it belongs to another codec than the one beside it.
    """
    workdir = WorkDir(path)
    config = load_config(path)
    codec = load_codec(workdir.codec)
    with CheckpointStore(workdir.checkpoints) as store:
        checkpoint = store.latest()
        if checkpoint is None:
            raise UserError(f"{workdir.checkpoints} holds no checkpoint: train the run first")
        metadata = checkpoint.metadata
        require_same_codec(metadata["codec_digest"], codec, f"the checkpoint of step {checkpoint.step}")
        record = PhaseRecord.from_json(metadata["phase"])
        parts = metadata["parts"]
        if "dynamics" not in parts or "action_space" not in metadata:
            raise UserError(
                f"--workdir {path} is at step {checkpoint.step}, in phase {record.phase}, and cannot play yet: "
                "train it further"
            )
        dynamics = "dynamics_ema" if "dynamics_ema" in parts else "dynamics"
        wanted = [name for name in (*LAM_PARTS, *CODEBOOK_PARTS, dynamics) if name in parts]
        arrays = store.read_arrays(checkpoint.step, *wanted)
        arrays["dynamics"] = arrays.pop(dynamics)
    try:
        action_space = ActionSpace.from_json(metadata["action_space"])
    except ValueError as error:
        raise UserError(f"the checkpoint of step {checkpoint.step} in {path} is damaged: {error}") from error
    return Run(
        workdir=workdir,
        config=config,
        codec=codec,
        models=make_models(config, codec),
        step=checkpoint.step,
        record=record,
        action_space=action_space,
        state=jax.tree.map(jnp.asarray, arrays),
    )


def initial_parameters(source: str, models: Models, codec: Codec, labels: ActionSpace | None) -> tuple[State, bool]:
    """What `--init-from WORKDIR[:lam|dynamics]` brings: parts of a state, and whether its actions are frozen.

    A run on labels, whose action space is given, takes the dynamics model only.

    Raises:
      UserError: no such run or part, or the parameters do not fit this run's models.
    """
    path, _, part = source.partition(":")
    if part not in ("", "lam", "dynamics"):
        raise UserError(f"--init-from {source}: after the colon stands lam or dynamics, not {part}")
    if labels and part == "lam":
        raise UserError(f"--init-from {source}: a run on the labels of data.actions has no LAM; take {path}:dynamics")
    workdir = WorkDir(path)
    theirs, ours = load_config(path), models.config
    if part != "dynamics" and not labels:
        seen = ("features", "action_stride", "window", "bottleneck", "fsq_levels")
        _check_same(source, "latent_actions", theirs.latent_actions, ours.latent_actions, seen)
    with CheckpointStore(workdir.checkpoints) as store:
        checkpoint = store.latest()
        if checkpoint is None:
            raise UserError(f"--init-from {source}: {workdir.checkpoints} holds no checkpoint")
        if labels and not part:
            require_same_actions(checkpoint.metadata, labels, f"--init-from {source}")
            part = "dynamics"
        there = checkpoint.metadata["parts"]
        frozen = checkpoint.metadata["phase"]["phase"] == Phase.FROZEN and part != "dynamics"
        if frozen:
            read_off = ("hears", "collapse_frames")
            _check_same(source, "latent_actions", theirs.latent_actions, ours.latent_actions, read_off)
        names = list(LAM_PARTS) if part != "dynamics" else []
        names += CODEBOOK_PARTS if frozen else []
        names += ["dynamics"] if part != "lam" and ("dynamics" in there or part == "dynamics") else []
        arrays = jax.tree.map(jnp.asarray, store.read_arrays(checkpoint.step, *names))
        if "dynamics" in arrays:
            require_same_codec(checkpoint.metadata["codec_digest"], codec, f"--init-from {source}")
            _check_same(source, "dynamics", theirs.dynamics, ours.dynamics, ("action_block",))
            arrays["dynamics"] = _with_own_presses(models, arrays["dynamics"], keys_stay=frozen)
    _check_fit(source, models, arrays)
    return arrays, frozen


def _with_own_presses(models: Models, dynamics: dict[str, Any], keys_stay: bool) -> dict[str, Any]:
    """Another run's dynamics model, with a table of presses if this run practises.

    It is that run's own if keys mean here what they meant there, or else a fresh one: practice would not unlearn what
    is added to a key that is never heard.
    """
    rest = {name: value for name, value in dynamics.items() if name != "embed_press"}
    if models.config.dynamics.practice_rate == 0:
        return rest
    if keys_stay and "embed_press" in dynamics:
        return dynamics
    return rest | {"embed_press": jax.tree.map(jnp.zeros_like, dynamics["embed_action"])}


def _check_same(source: str, owner: str, theirs: Any, ours: Any, names: tuple[str, ...]) -> None:
    """What shapes do not tell: a LAM that sees other things, or other stretches of them, has other actions."""
    for name in names:
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"--init-from {source}: {owner}.{name} is {getattr(theirs, name)} there and {getattr(ours, name)} in "
                "this run: choose the same"
            )


def _check_fit(source: str, models: Models, arrays: State) -> None:
    wanted = abstract_state(models, list(arrays))
    for name in arrays:
        new = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(arrays[name])}
        here = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(wanted[name])}
        for leaf in sorted(new.keys() | here.keys()):
            if new.get(leaf) != here.get(leaf):
                raise UserError(
                    f"--init-from {source}: {name}{leaf} is {new.get(leaf, 'absent')} there and "
                    f"{here.get(leaf, 'absent')} in this run: choose the same model settings"
                )
