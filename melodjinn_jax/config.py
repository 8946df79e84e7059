"""Every setting of Melodjinn, as frozen dataclasses with a line of help each; nothing else.

An experiment file builds a `Config` in `get_config()`; the command line overrides single fields
(`--dynamics.num-layers 24`). All fields are part of a run's identity and may not change on resume,
but for those of `RuntimeConfig` and `EvaluationConfig`, which say how a run is carried out and measured and not what
it computes.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

DRUM_NAMES = ("kick", "snare", "hat", "clap", "tom")


@dataclass(frozen=True)
class DataConfig:
    """What a run trains on: DATASETs that a pipeline wrote, or the toy drum world, which it makes itself."""

    datasets: tuple[str, ...] = ()
    """Folders of the DATASETs to train on; empty: the toy drum world, which all fields but the first three describe."""
    weights: tuple[float, ...] = ()
    """Share of each of data.datasets in the batches, in any unit; empty: by the number of their training records."""
    actions: str = ""
    """Labels to train on instead of waveform and LAM: first digits of their action space's digest, or auto where there
    is one only (python -m melodjinn_jax.label makes them); empty: the run discovers its own actions."""
    path: str = ""
    """Folder of the drum world's DATASET; empty: WORKDIR/dataset. It is prepared there if it does not exist."""
    num_drums: int = 3
    """Number of synthetic drums, in the order kick, snare, hat, clap, tom (1 to 5)."""
    one_shots: str = ""
    """Folder of one-shot recordings (WAV, FLAC or MP3) to play instead of the synthetic drums; empty: synthetic."""
    rhythm: Literal["random", "loop"] = "random"
    """Hits at random times, or a short pattern repeated through each clip."""
    offsets: bool = True
    """Hits fall at any sample (true) or only at the start of a frame (false)."""
    min_velocity: float = 1.0
    """The gain of each hit is drawn uniformly from [min_velocity, 1]; 1: every hit is equally loud."""
    hits_per_second: float = 4.0
    """Mean rate of random hits."""
    min_gap: int = 4
    """Fewest frames between the starts of two hits; tails overlap and add."""
    loop_frames: int = 16
    """Length of the repeated pattern, in frames."""
    clip_frames: int = 96
    """Frames in one record of the DATASET."""
    train_clips: int = 512
    """Records of the training split."""
    heldout_clips: int = 64
    """Records of the validation split, and as many again of the test split."""
    seed: int = 0
    """Random seed of the world: another seed is another draw of clips."""


@dataclass(frozen=True)
class CodecConfig:
    """The small codec fitted on the data."""

    codebook_size: int = 256
    """Entries in each codebook."""
    num_codebooks: int = 2
    """Residual codebooks per frame."""
    steps: int = 600
    """Optimiser steps of the fit."""
    seed: int = 0
    """Random seed of the fit."""


@dataclass(frozen=True)
class LatentActionConfig:
    """The latent action model (LAM): what it sees, its size, its bottleneck, how codes become keys."""

    features: Literal["mel", "spectra", "waveform", "normalized"] = "mel"
    """What the LAM sees and predicts: max-pooled mel bands; spectra of two resolutions in which the level counts
    little; the mu-law companded waveform; or unit-power patches."""
    hears: Literal["recording", "codec"] = "recording"
    """What the LAM hears of music: recordings as they are, or what the codec makes of them, as it will make of what is
    played: then it hears the same action in both."""
    action_stride: int = 1
    """Frames per action (S)."""
    dim: int = 64
    """Model width (D)."""
    num_heads: int = 4
    """Attention heads (A)."""
    encoder_layers: int = 2
    """Blocks of the causal encoder."""
    decoder_layers: int = 2
    """Blocks of the causal decoder."""
    window: int = 24
    """Blocks that each attention layer looks back over; the encoder sees encoder_layers * (window - 1) + 1 in all."""
    horizon: int = 2
    """Blocks that the decoder predicts from one action: the action's own and those after it."""
    latent_dim: int = 8
    """Width of a latent action (Z)."""
    bottleneck: Literal["ema_vq", "fsq"] = "ema_vq"
    """How latents become codes: a codebook tracked by exponential moving averages, or finite scalar quantisation."""
    codebook_init: Literal["clusters", "random"] = "clusters"
    """Read the codebook off the clusters of the continuous warm-up, or start it at random (the classical way)."""
    reset_dead_codes: bool = False
    """Re-seed unused codes from latents; only for the comparison with the classical start, for it flips codes."""
    max_codes: int = 16
    """Most codes of the EMA codebook; the number in use is discovered."""
    event_share: float = 0.0
    """Share of the transitions that are events when the codebook is read off: those about which the latent says most,
    of max_codes - 1 kinds; the rest is NOOP. 0: as many events as the clusters hold."""
    fsq_levels: tuple[int, ...] = (2, 2)
    """Levels of each FSQ dimension; their product is the number of codes."""
    kl_weight: float = 0.002
    """Price of information in the continuous warm-up; this price is what makes a NOOP."""
    commitment_weight: float = 0.0125
    """Weight of the commitment loss under a codebook."""
    ema_decay: float = 0.95
    """Decay of the codebook's moving averages."""
    cluster_radius: float = 2.0
    """Cluster centres closer than this, in units of the warm-up's noise, are one code."""
    gradient: Literal["reconstruction", "dynamics"] = "reconstruction"
    """What trains the LAM: its own decoder's reconstruction, or (decoder-free) the dynamics model's cross entropy."""
    merge: Literal["effect", "none"] = "effect"
    """How codes become keys: merged by what they do, as hits want it, or each is a key, the commonest NOOP."""
    merge_error: float = 0.07
    """A code joins the key whose sound leaves less than this share of the code's own effect unexplained."""
    noop_threshold: float = 0.2
    """A code whose effect is below this share of the median effect of events is NOOP, or a key's tail."""
    collapse_frames: int = 2
    """A key repeated within this many actions is credited to the first; 0 keeps repeats."""


@dataclass(frozen=True)
class DynamicsConfig:
    """The dynamics transformer over codec tokens."""

    layout: Literal["flat", "depth"] = "flat"
    """One step of the transformer per token, or one per frame and a small second transformer over its codebooks."""
    dim: int = 64
    """Model width (D)."""
    num_heads: int = 4
    """Attention heads (A)."""
    num_layers: int = 3
    """Transformer blocks."""
    window: int = 48
    """Frames that each token looks back over, in training as in play."""
    depth_dim: int = 64
    """Width of the second transformer of the depth layout; its heads are as wide as the others."""
    depth_layers: int = 2
    """Blocks of the second transformer of the depth layout."""
    max_mask_rate: float = 1.0
    """Each clip hides whole frames of its context at a rate drawn from U(0, max_mask_rate)."""
    splice_probability: float = 0.5
    """Share of clips that are cut into pieces, each taken from another clip."""
    splice_frames: float = 12.0
    """Mean length of the pieces."""
    action_block: int = 0
    """Block of the transformer before which actions are added; those before it see the music alone."""
    action_dropout: float = 0.1
    """Share of clips trained with the null action."""
    actions_from: float = 0.0
    """Share of the dynamics model's steps after which actions are given. Until then it trains with the null action
    alone; what it then learns of actions is learnt on top of what it knows without them. It foretells better so, and
    follows most keys less (docs/research/music_actions.md)."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which then plays and is evaluated; 0: the weights themselves do."""
    practice_rate: float = 0.0
    """Learning rate of practice, on the schedule of dynamics_optimizer: keys are pressed at random and played, and what
    a press adds to its key is learnt where the LAM hears the key that was pressed; 0: none."""
    practice_strength: float = 2.0
    """Strength at which keys are pressed in practice, and are to be played (evaluation.strength). It must be above 1,
    at which keys are what music alone taught, whatever was practised."""
    practice_from: float = 0.5
    """Share of the dynamics model's steps after which practice begins."""
    practice_frames: int = 40
    """Frames of music before each press of practice; each crop holds as many presses as such stretches."""


@dataclass(frozen=True)
class PhasesConfig:
    """When training goes from discover to quantise to frozen."""

    discover_steps: int = 150
    """Steps of the continuous warm-up; 0 starts with a codebook at once."""
    dynamics_start: Literal["quantise", "frozen"] = "frozen"
    """The phase from which the dynamics model trains."""
    freeze: Literal["auto", "step", "never"] = "auto"
    """Freeze when the actions are stable, at freeze_deadline whatever they do, or never."""
    freeze_deadline: int = 300
    """Last step of the LAM, counted from the start of the run."""
    check_every: int = 25
    """Steps between two looks at the probe set."""
    stable_checks: int = 2
    """Looks in a row that must find the actions stable."""
    min_agreement: float = 0.9
    """Agreement of the worst key's assignments between two looks that counts as stable."""
    probe_clips: int = 96
    """Unlabelled training clips on which codes are read off, merged and compared."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Clipping, an optimiser and a schedule."""

    algorithm: Literal["adamw", "muon"] = "adamw"
    """AdamW for all parameters, or Muon for the matrices of transformer blocks and Adam for the rest."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Decay after the warm-up: cosine to a tenth, warm-up-stable-decay, or none."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    decay_fraction: float = 0.2
    """Share of the steps that the WSD schedule spends decaying."""
    b2: float = 0.99
    """Decay of Adam's second moment."""
    weight_decay: float = 1e-3
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""


@dataclass(frozen=True)
class TrainingConfig:
    """The length and the batches of a run."""

    steps: int = 800
    """Optimiser steps of the whole run, all phases together."""
    batch_size: int = 16
    """Clips per step (B)."""
    crop_frames: int = 48
    """Frames of the random crop of each clip (F)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the matrix products; parameters, norms and losses stay float32."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` measures, and on what."""

    split: Literal["test", "validation"] = "test"
    """Held-out split: choose settings on validation, report on test."""
    clips: int = 48
    """Held-out clips."""
    frames: int = 64
    """Frames of each generated clip, the prompt among them."""
    prompt_frames: int = 8
    """True frames before each generation (36 in the looped world's NOOP test)."""
    loop_prompt_frames: int = 36
    """True frames before the all-NOOP continuation of a looped rhythm; only of the drum world."""
    presses_per_key: int = 24
    """Presses of each key in the all-keys test; only of the drum world."""
    temperature: float = 0.5
    """Temperature of the measures under `sampled` (the others are greedy), and of the commands that play unless they
    are told otherwise."""
    strength: float = 1.0
    """Strength of the actions, NOOP among them, in all that is played, by the evaluation and by the commands that play:
    1 is as they were trained."""
    takes: int = 1
    """Continuations of each clip over which delta control is averaged: the more, the less of its interval is due to the
    dice of the sampling."""
    generate: bool = True
    """Generate, and measure what is heard; false: only the losses on held-out clips, which is soon done."""


@dataclass(frozen=True)
class MeshConfig:
    """Lengths of the axes of the mesh of devices; 0 leaves an axis to the devices and the model's size."""

    slice: int = 0
    """Slices of devices joined by the data-centre network; 0: as many as there are."""
    data: int = 0
    """Groups of devices, each with all parameters, that divide the batch."""
    fsdp: int = 0
    """Devices of a group that share out the parameters, and divide the batch too."""
    tensor: int = 0
    """Devices that share out the heads and the wide layers of each clip; 0 is 1."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How a run is carried out: these settings may change when it resumes."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 100
    """Steps between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    compile_cache: str = "~/.cache/melodjinn/jax"
    """Folder of compiled programs, shared by all runs; empty: none."""
    data_workers: int = 0
    """Processes that read the data; 0 reads in the training process."""
    steps_per_dispatch: int = 1
    """Optimiser steps that the device takes before it asks the host again: more than one pays where the model is so
    small that its steps wait for the host. Divides whatever is counted in steps."""
    accumulate: int = 1
    """Parts of a batch that the dynamics model goes through one after the other, to save memory."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes anew, to save memory: nothing, all but matrix products and fused attention, or
    whole blocks."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Kernel of attention over whole clips: the device's (cuDNN on a GPU in bfloat16 for heads whose width is a
    multiple of 8 up to 128, splash on a TPU; XLA below 64 positions) or the one named; where a length is no multiple of
    128, XLA stands in for splash."""
    unrolled_layers: int = 0
    """The most layers that are compiled one by one, not as a loop, which is faster and takes longer to compile; 0: 32
    on a GPU or TPU, 4 on a CPU."""
    progress: bool = True
    """Show a progress bar."""
    evaluate: bool = True
    """End the training with the evaluation and the report."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    cpu_devices: int = 0
    """Devices as which a CPU counts, which share out the batch: on two cores a small model trains faster on two of them
    than on one. Results differ by rounding. Goes before JAX_NUM_CPU_DEVICES, which 0 leaves as it is."""
    profile_steps: tuple[int, ...] = ()
    """First and last step of which to write a profile into WORKDIR/profile; empty: none."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "toy_drums"
    """Name of the experiment, shown in reports."""
    seed: int = 0
    """Random seed of the models, the batches and the noise."""
    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    latent_actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    lam_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    dynamics_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=4e-3))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def identity(config: Config) -> dict:
    """The settings that a resumed run must share with the run it resumes, as nested dicts."""
    fields = dataclasses.asdict(config)
    del fields["runtime"], fields["evaluation"]
    return fields
