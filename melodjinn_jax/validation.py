"""Refuses a configuration that cannot work, in one sentence that names the field, before any device is touched."""

from collections.abc import Iterator

from melodjinn_jax.config import DRUM_NAMES, CodecConfig, Config, OptimizerConfig
from melodjinn_jax.errors import UserError

Checks = Iterator[tuple[bool, str]]


def check_config(config: Config) -> None:
    """Raise `UserError` with the first thing that cannot work."""
    check_codec(config.codec, "codec")
    for checks in (_data, _latent_actions, _dynamics, _phases, _training, _evaluation):
        _refuse(checks(config))


def check_codec(codec: CodecConfig, where: str) -> None:
    """Raise `UserError` for a setting of the fit that cannot work, named as a field of `where`."""
    _refuse(_codec(codec, where))


def _refuse(checks: Checks) -> None:
    for is_wrong, message in checks:
        if is_wrong:
            raise UserError(message)


def _at_least(owner: object, prefix: str, minimum: float, *fields: str) -> Checks:
    for field in fields:
        value = getattr(owner, field)
        name = f"{prefix}.{field}" if prefix else field
        yield not value >= minimum, f"{name} is {value}: it must be at least {minimum}"


def _share(owner: object, prefix: str, *fields: str) -> Checks:
    for field in fields:
        value = getattr(owner, field)
        yield not 0 <= value <= 1, f"{prefix}.{field} is {value}: it must lie between 0 and 1"


def _seed(name: str, seed: int) -> Checks:
    yield not 0 <= seed < 2**31, f"{name} is {seed}: it must lie between 0 and 2^31 - 1"


def _data(config: Config) -> Checks:
    data = config.data
    yield from _seed("seed", config.seed)
    yield from _seed("data.seed", data.seed)
    yield (
        not 1 <= data.num_drums <= len(DRUM_NAMES),
        f"data.num_drums is {data.num_drums}: it must lie between 1 and {len(DRUM_NAMES)}",
    )
    yield not 0 < data.min_velocity <= 1, f"data.min_velocity is {data.min_velocity}: it must lie in (0, 1]"
    yield not data.hits_per_second > 0, f"data.hits_per_second is {data.hits_per_second}: it must be positive"
    yield from _at_least(data, "data", 1, "min_gap", "loop_frames", "clip_frames", "train_clips", "heldout_clips")
    yield from _datasets(config)


def _datasets(config: Config) -> Checks:
    data = config.data
    yield (
        bool(data.datasets and data.path),
        f"data.path is {data.path}: it is a place for the drum world, so leave it out or leave out data.datasets",
    )
    yield (
        bool(data.weights) and len(data.weights) != len(data.datasets),
        f"data.weights is {data.weights}: give one weight for each of the {len(data.datasets)} data.datasets, or none",
    )
    yield (
        not all(0 < weight < float("inf") for weight in data.weights),
        f"data.weights is {data.weights}: every weight must be positive",
    )
    yield (
        len(set(data.datasets)) < len(data.datasets),
        f"data.datasets is {data.datasets}: name each DATASET once, and give data.weights",
    )
    yield (
        bool(data.actions) and not data.datasets,
        f"data.actions is {data.actions}: it needs data.datasets, the DATASETs that were labelled",
    )
    yield (
        bool(data.actions) and config.latent_actions.gradient == "dynamics",
        "latent_actions.gradient is dynamics: a run on the labels of data.actions has no LAM to train",
    )


def _codec(codec: CodecConfig, where: str) -> Checks:
    yield from _at_least(codec, where, 1, "num_codebooks")
    yield from _at_least(codec, where, 2, "steps")
    yield (
        not 2 <= codec.codebook_size <= 65536,
        f"{where}.codebook_size is {codec.codebook_size}: it must lie between 2 and 65536",
    )
    yield from _seed(f"{where}.seed", codec.seed)


def _latent_actions(config: Config) -> Checks:
    actions = config.latent_actions
    positive = ("action_stride", "num_heads", "encoder_layers", "decoder_layers", "latent_dim", "horizon")
    yield from _at_least(actions, "latent_actions", 1, *positive)
    yield from _at_least(actions, "latent_actions", 2, "window", "max_codes")
    yield from _heads("latent_actions", actions.dim, actions.num_heads)
    yield (
        config.training.crop_frames % actions.action_stride > 0,
        f"training.crop_frames is {config.training.crop_frames}: it must be a multiple of "
        f"latent_actions.action_stride, {actions.action_stride}",
    )
    yield (
        config.training.crop_frames < 2 * actions.action_stride,
        f"training.crop_frames is {config.training.crop_frames}: it must hold two blocks of "
        f"latent_actions.action_stride, {actions.action_stride}",
    )
    yield (
        not config.data.datasets and config.data.clip_frames % actions.action_stride > 0,
        f"data.clip_frames is {config.data.clip_frames}: it must be a multiple of "
        f"latent_actions.action_stride, {actions.action_stride}",
    )
    yield (
        not 0 <= actions.event_share < 1,
        f"latent_actions.event_share is {actions.event_share}: it must lie in [0, 1)",
    )
    yield (
        actions.event_share > 0 and (actions.bottleneck != "ema_vq" or actions.codebook_init != "clusters"),
        f"latent_actions.event_share is {actions.event_share}: it needs latent_actions.bottleneck ema_vq and "
        "latent_actions.codebook_init clusters",
    )
    yield (
        actions.hears == "codec" and not config.data.datasets,
        "latent_actions.hears is codec: the drum world's LAM hears its clips as they are, so leave it out",
    )
    is_fsq = actions.bottleneck == "fsq"
    yield (
        is_fsq and (not actions.fsq_levels or min(actions.fsq_levels) < 2),
        f"latent_actions.fsq_levels is {actions.fsq_levels}: every dimension needs at least 2 levels",
    )
    yield (
        is_fsq and config.phases.discover_steps > 0,
        f"phases.discover_steps is {config.phases.discover_steps}: with latent_actions.bottleneck fsq it must be 0, "
        "for there is no codebook to read off",
    )
    yield (
        not is_fsq and actions.codebook_init == "clusters" and config.phases.discover_steps == 0,
        "phases.discover_steps is 0: latent_actions.codebook_init clusters needs a warm-up, or set it to random",
    )
    yield from _share(actions, "latent_actions", "ema_decay", "merge_error")
    yield from _at_least(
        actions,
        "latent_actions",
        0,
        "kl_weight",
        "commitment_weight",
        "cluster_radius",
        "noop_threshold",
        "collapse_frames",
    )


def _heads(prefix: str, dim: int, heads: int) -> Checks:
    fits = heads > 0 and dim > 0 and dim % heads == 0 and dim // heads % 2 == 0
    yield not fits, f"{prefix}.dim is {dim}: it must be an even multiple of {prefix}.num_heads, {heads}"


def _dynamics(config: Config) -> Checks:
    dynamics = config.dynamics
    yield from _at_least(dynamics, "dynamics", 1, "num_heads", "num_layers", "window")
    yield from _heads("dynamics", dynamics.dim, dynamics.num_heads)
    yield (
        not 0 <= dynamics.action_block < dynamics.num_layers,
        f"dynamics.action_block is {dynamics.action_block}: it must lie in [0, dynamics.num_layers), "
        f"{dynamics.num_layers}",
    )
    if dynamics.layout == "depth":
        yield from _at_least(dynamics, "dynamics", 1, "depth_dim", "depth_layers")
        head_dim = dynamics.dim // dynamics.num_heads
        yield (
            dynamics.depth_dim % head_dim > 0,
            f"dynamics.depth_dim is {dynamics.depth_dim}: it must be a multiple of the width of a head, {head_dim}, "
            "which is dynamics.dim over dynamics.num_heads",
        )
    yield from _at_least(dynamics, "dynamics", 1, "splice_frames")
    yield from _share(dynamics, "dynamics", "max_mask_rate", "splice_probability", "action_dropout")
    yield not 0 <= dynamics.ema_decay < 1, f"dynamics.ema_decay is {dynamics.ema_decay}: it must lie in [0, 1)"
    yield from _at_least(dynamics, "dynamics", 0, "practice_rate")
    for name in ("actions_from", "practice_from"):
        share = getattr(dynamics, name)
        yield not 0 <= share < 1, f"dynamics.{name} is {share}: it must lie in [0, 1)"
    yield (
        dynamics.actions_from > 0 and config.latent_actions.gradient == "dynamics",
        f"dynamics.actions_from is {dynamics.actions_from}: a LAM that learns from the dynamics model's loss needs the "
        "actions from the first step; set it to 0, or latent_actions.gradient to reconstruction",
    )
    if dynamics.practice_rate > 0:
        yield from _practice(config)


def _practice(config: Config) -> Checks:
    dynamics, stride = config.dynamics, config.latent_actions.action_stride
    yield (
        config.phases.freeze == "never",
        f"dynamics.practice_rate is {dynamics.practice_rate}: practice needs keys that stay what they are, but "
        "phases.freeze is never; set one of the two",
    )
    yield (
        dynamics.practice_from < dynamics.actions_from,
        f"dynamics.practice_from is {dynamics.practice_from}: there is nothing to practise before actions are given, "
        f"from {dynamics.actions_from} on (dynamics.actions_from)",
    )
    yield (
        dynamics.practice_strength <= 1,
        f"dynamics.practice_strength is {dynamics.practice_strength}: it must be above 1, for what is practised is "
        "added beyond that",
    )
    yield (
        config.runtime.accumulate > 1,
        f"runtime.accumulate is {config.runtime.accumulate}: it must be 1 while dynamics.practice_rate is above 0",
    )
    yield (
        bool(config.data.actions),
        f"dynamics.practice_rate is {dynamics.practice_rate}: it needs a LAM that listens, which a run on the "
        "labels of data.actions has not; set it to 0",
    )
    yield (
        dynamics.practice_frames % stride > 0 or dynamics.practice_frames < 2 * stride,
        f"dynamics.practice_frames is {dynamics.practice_frames}: it must be a multiple of "
        f"latent_actions.action_stride, {stride}, two or more",
    )
    yield (
        dynamics.practice_frames > config.training.crop_frames,
        f"dynamics.practice_frames is {dynamics.practice_frames}: training.crop_frames is only "
        f"{config.training.crop_frames}",
    )


def _phases(config: Config) -> Checks:
    phases = config.phases
    yield from _at_least(phases, "phases", 0, "discover_steps")
    yield from _at_least(phases, "phases", 1, "check_every", "stable_checks", "probe_clips")
    yield (
        not config.data.datasets and phases.probe_clips > config.data.train_clips,
        f"phases.probe_clips is {phases.probe_clips}: there are only {config.data.train_clips} data.train_clips",
    )
    yield (
        phases.freeze != "never" and phases.freeze_deadline <= phases.discover_steps,
        f"phases.freeze_deadline is {phases.freeze_deadline}: it must come after phases.discover_steps, "
        f"{phases.discover_steps}",
    )
    yield from _share(phases, "phases", "min_agreement")


def _training(config: Config) -> Checks:
    training = config.training
    yield from _at_least(training, "training", 1, "steps", "batch_size")
    yield (
        not config.data.datasets and training.crop_frames > config.data.clip_frames,
        f"training.crop_frames is {training.crop_frames}: data.clip_frames is only {config.data.clip_frames}",
    )
    yield from _optimizer("lam_optimizer", config.lam_optimizer)
    yield from _optimizer("dynamics_optimizer", config.dynamics_optimizer)
    runtime = config.runtime
    yield from _at_least(runtime, "runtime", 1, "log_every", "save_every", "keep_checkpoints")
    yield from _at_least(runtime, "runtime", 0, "data_workers", "unrolled_layers", "cpu_devices")
    yield from _at_least(runtime, "runtime", 1, "accumulate")
    yield (
        training.batch_size % runtime.accumulate > 0,
        f"runtime.accumulate is {runtime.accumulate}: it must divide training.batch_size, {training.batch_size}",
    )
    yield (
        runtime.accumulate > 1 and config.latent_actions.gradient == "dynamics",
        f"runtime.accumulate is {runtime.accumulate}: it must be 1 while latent_actions.gradient is dynamics",
    )
    yield (
        runtime.attention == "cudnn" and training.dtype == "float32",
        "runtime.attention is cudnn: it needs training.dtype bfloat16",
    )
    for name in _trained_models(config):
        width = getattr(config, name).dim // max(1, getattr(config, name).num_heads)
        yield (
            runtime.attention == "cudnn" and not (width % 8 == 0 and width <= 128),
            f"runtime.attention is cudnn: the heads of {name} are {width} wide, and must be a multiple of 8 up to 128",
        )
    steps = runtime.profile_steps
    yield (
        bool(steps) and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
        f"runtime.profile_steps is {steps}: give the first step to profile, from 1, and the last",
    )
    yield from _dispatches(config)
    yield from _mesh(config)


def _dispatches(config: Config) -> Checks:
    """Whatever is to happen at a certain step can happen between two dispatches only."""
    runtime, phases = config.runtime, config.phases
    yield from _at_least(runtime, "runtime", 1, "steps_per_dispatch")
    counts = {"training.steps": config.training.steps}
    counts |= {f"runtime.{name}": getattr(runtime, name) for name in ("log_every", "save_every")}
    if not config.data.actions:
        names = ("discover_steps", "check_every", *(["freeze_deadline"] if phases.freeze != "never" else []))
        counts |= {f"phases.{name}": getattr(phases, name) for name in names}
    for name, count in counts.items():
        yield (
            count % max(1, runtime.steps_per_dispatch) > 0,
            f"runtime.steps_per_dispatch is {runtime.steps_per_dispatch}: it must divide {name}, {count}",
        )


def _trained_models(config: Config) -> tuple[str, ...]:
    """Fields of `config` whose models a run has: on labels there is no LAM."""
    return ("dynamics",) if config.data.actions else ("dynamics", "latent_actions")


def _mesh(config: Config) -> Checks:
    """What is wrong whatever the devices; `training/mesh.py` says what is wrong with these."""
    mesh = config.runtime.mesh
    yield from _at_least(mesh, "runtime.mesh", 0, "slice", "data", "fsdp", "tensor")
    shards = max(1, mesh.slice) * max(1, mesh.data) * max(1, mesh.fsdp)
    yield (
        config.training.batch_size % shards > 0,
        f"training.batch_size is {config.training.batch_size}: it must be a multiple of {shards}, the product of "
        "runtime.mesh's axes slice, data and fsdp",
    )
    accumulate = config.runtime.accumulate
    yield (
        accumulate > 1 and config.training.batch_size % (shards * accumulate) > 0,
        f"runtime.accumulate is {accumulate}: times {shards}, the product of runtime.mesh's axes slice, data and fsdp, "
        f"it must divide training.batch_size, {config.training.batch_size}",
    )
    for name in _trained_models(config):
        model = getattr(config, name)
        for axis, field, size in (("tensor", "num_heads", model.num_heads), ("fsdp", "dim", model.dim)):
            length = getattr(mesh, axis) or 1
            yield size % length > 0, f"runtime.mesh.{axis} is {length}: it must divide {name}.{field}, {size}"
    if config.dynamics.layout == "depth":
        dynamics = config.dynamics
        heads = dynamics.depth_dim * dynamics.num_heads // dynamics.dim
        for axis, size, what in (
            ("fsdp", dynamics.depth_dim, "dynamics.depth_dim"),
            ("tensor", heads, "the heads of dynamics.depth_dim"),
        ):
            length = getattr(mesh, axis) or 1
            yield size % length > 0, f"runtime.mesh.{axis} is {length}: it must divide {what}, {size}"


def _optimizer(prefix: str, optimizer: OptimizerConfig) -> Checks:
    for field in ("learning_rate", "clip_norm"):
        value = getattr(optimizer, field)
        yield not value > 0, f"{prefix}.{field} is {value}: it must be positive"
    yield from _at_least(optimizer, prefix, 0, "warmup_steps", "weight_decay")
    yield from _share(optimizer, prefix, "b2", "decay_fraction")


def _evaluation(config: Config) -> Checks:
    evaluation, phases = config.evaluation, config.phases
    last_lam_step = phases.freeze_deadline if phases.freeze != "never" else config.training.steps
    starts = phases.discover_steps if phases.dynamics_start == "quantise" else last_lam_step
    is_late = config.latent_actions.gradient != "dynamics" and not config.data.actions
    # Losses can be had of a dynamics model that is made at the last step; one that never trains cannot play.
    never_starts = phases.freeze == "never" and phases.dynamics_start == "frozen"
    is_made = config.training.steps >= starts and not never_starts
    can_play = config.training.steps > starts
    yield (
        config.runtime.evaluate and is_late and not (can_play if evaluation.generate else is_made),
        "phases.freeze is never: with phases.dynamics_start frozen the dynamics model would never start; change one of "
        "them, or set runtime.evaluate false"
        if never_starts
        else f"training.steps is {config.training.steps}: the dynamics model would start at step {starts} and never "
        f"play; train longer, or set {'evaluation.generate or ' if is_made else ''}runtime.evaluate false",
    )
    yield from _at_least(evaluation, "evaluation", 1, "clips", "prompt_frames", "presses_per_key", "takes")
    yield from _at_least(evaluation, "evaluation", 0, "temperature", "strength")
    no_drums = config.data.datasets or not evaluation.generate
    yield from (_evaluation_of_music if no_drums else _evaluation_of_drums)(config)


def _evaluation_of_music(config: Config) -> Checks:
    evaluation, stride = config.evaluation, config.latent_actions.action_stride
    yield (
        not config.data.datasets and evaluation.frames > config.data.clip_frames,
        f"evaluation.frames is {evaluation.frames}: it must be at most data.clip_frames, {config.data.clip_frames}",
    )
    for name in ("frames", "prompt_frames"):
        value = getattr(evaluation, name)
        yield (
            value % stride > 0,
            f"evaluation.{name} is {value}: it must be a multiple of latent_actions.action_stride, {stride}",
        )
    yield (
        evaluation.frames < evaluation.prompt_frames + 2 * stride,
        f"evaluation.frames is {evaluation.frames}: it must hold evaluation.prompt_frames, {evaluation.prompt_frames}, "
        "and two blocks more",
    )


def _evaluation_of_drums(config: Config) -> Checks:
    evaluation = config.evaluation
    yield (
        config.runtime.evaluate and config.latent_actions.action_stride != 1,
        f"latent_actions.action_stride is {config.latent_actions.action_stride}: the evaluation of drums knows only 1; "
        "set runtime.evaluate false",
    )
    longest = max(evaluation.prompt_frames, evaluation.loop_prompt_frames)
    yield (
        not longest + 16 <= evaluation.frames <= config.data.clip_frames,
        f"evaluation.frames is {evaluation.frames}: it must be at least {longest + 16}, the longest prompt and 16 "
        f"more, and at most data.clip_frames, {config.data.clip_frames}",
    )
