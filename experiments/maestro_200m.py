"""Piano: a dynamics model of 204M parameters over EnCodec at 3 kbps (4 codebooks), on MAESTRO.

    python -m data_pipelines.maestro --metadata maestro-v3.0.0.csv --output data/maestro \\
        --codec encodec_24khz --bandwidth 3.0
    python -m melodjinn_jax.train --config experiments/maestro_200m.py --workdir runs/maestro_200m

Another place of the DATASET, or several: `--data.datasets PATH PATH --data.weights 2 1`. Once the actions are frozen
(at step 2,000 at the latest) they can be written beside the DATASET; a second run then reads neither sound nor LAM:

    python -m melodjinn_jax.label --workdir runs/maestro_200m --dataset data/maestro
    python -m melodjinn_jax.train --config experiments/maestro_200m.py --workdir runs/maestro_labelled \\
        --data.actions auto

**No run of this has been made**, for want of the music. What the comments give as a reason is computed, or was
measured on much smaller models.

Meant for 8 chips, eight clips each, all of which hold all parameters (mesh data 8, which is what is chosen). On 8 TPU
v5e, `python -m melodjinn_jax.compile --config experiments/maestro_200m.py --topology v5e:2x4` finds 8.3 GiB of 16 GB
needed per device (2.3 for parameters and optimiser). At the chip's stated rates a frozen-phase step of 133 TFLOP takes
84 ms if memory never makes it wait, 152 ms if it always does: 4.5 to 8 chip-hours for the 24,000 steps of the dynamics
model, and a real chip is slower. docs/mfu.md has v5p and v6e. One H200 has made steps of 32 clips, on noise, at 46 %
MFU (docs/performance.md): at that rate as many tokens are two hours. Where activations do not fit, `--runtime.remat
dots` keeps less of them.
"""

from melodjinn_jax.config import (
    Config,
    DataConfig,
    DynamicsConfig,
    EvaluationConfig,
    LatentActionConfig,
    OptimizerConfig,
    PhasesConfig,
    RuntimeConfig,
    TrainingConfig,
)


def get_config() -> Config:
    return Config(
        name="maestro_200m",
        data=DataConfig(datasets=("data/maestro",)),
        latent_actions=LatentActionConfig(
            action_stride=4,  # 19 actions a second: short notes of a piano come some ten a second
            dim=256,  # a LAM of 6M parameters costs a thirtieth of the dynamics model
            num_heads=4,
            encoder_layers=4,
            decoder_layers=4,
            window=24,  # blocks; four layers hear 93 blocks, 5 s, which is the crop
            latent_dim=8,  # the drum world's, and enough for 14 codes in the pilot on music
            max_codes=16,  # as many keys as two hands can learn; the number in use is discovered
            kl_weight=0.02,  # the pilot's higher price: 5 codes in use at this stride against 14, and a clear NOOP
            merge_error=0.02,  # codes of music depend on what sounds around them: merged only where they are the same
            collapse_frames=0,  # a held action may go on for several blocks
        ),
        dynamics=DynamicsConfig(
            dim=1024,  # with 16 layers 16 x 12 x 1024^2 = 201M parameters, and 3M of embeddings
            num_heads=8,  # head width 128, which matrix units like
            num_layers=16,
            window=256,  # frames, 3.4 s: less than a crop, so that training sees full windows as play does
            splice_probability=0.0,  # the pilot had none; what it does to music has not been measured
        ),
        phases=PhasesConfig(
            discover_steps=1000,  # 330,000 s of music: the pilot's LAM converged within 10,000 s, with 200k parameters
            freeze_deadline=2000,
            check_every=100,
            dynamics_start="frozen",  # as good as both together on the drum world, and cheaper
            probe_clips=128,
        ),
        lam_optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100),
        dynamics_optimizer=OptimizerConfig(
            learning_rate=3e-4,  # usual for transformers of this width
            schedule="wsd",  # so that a run can be made longer from a checkpoint before the decay
            warmup_steps=500,
            b2=0.95,  # usual with batches of this size
            weight_decay=0.1,
        ),
        training=TrainingConfig(
            # 24,000 for the dynamics model see 2.4G tokens: 159 h of training music hold 172M, so 14 passes under
            # masks and random crops. Twenty tokens for each parameter would be 4.1G; beyond some 16 passes repeated
            # tokens are known to teach little (Muennighoff et al. 2023).
            steps=26_000,
            # 98,304 tokens, eight clips for each of 8 chips: with one clip each the products of a step take 10 ms on a
            # v5e, and what does not shrink with the batch (AdamW's reads and writes, the all-reduce) 14.
            batch_size=64,
            crop_frames=384,  # 5.1 s; a multiple of every action stride up to 128
            dtype="bfloat16",
        ),
        # 6.8 s each, of which the first 1.7 s are given.
        evaluation=EvaluationConfig(clips=32, frames=512, prompt_frames=128, temperature=0.8),
        runtime=RuntimeConfig(log_every=10, save_every=500, data_workers=2),
    )
