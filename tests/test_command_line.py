"""Bad input: one clear sentence that names the file, field or flag, and no stack trace."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import Config, DataConfig, LatentActionConfig, TrainingConfig
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import load_experiment, parse_train_arguments
from melodjinn_jax.validation import check_config

GOOD = "from melodjinn_jax.config import Config\ndef get_config():\n    return Config()\n"


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "good.py"
    file.write_text(GOOD)
    return str(file)


def refuse(*argv: str) -> str:
    with pytest.raises(UserError) as refusal:
        parse_train_arguments(list(argv))
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_overrides_reach_every_level(experiment):
    arguments = parse_train_arguments(
        f"--config {experiment} --workdir w --seed 3 --data.num-drums 5 --data.rhythm loop --data.offsets false "
        "--dynamics.max-mask-rate .5 --data.one-shots some/folder".split()
    )
    config = arguments.settings
    assert (config.seed, config.data.num_drums, config.data.rhythm, config.data.offsets) == (3, 5, "loop", False)
    assert (config.dynamics.max_mask_rate, config.data.one_shots) == (0.5, "some/folder")


def test_several_datasets_and_their_weights(experiment):
    given = "--data.datasets some/one two --data.weights 2 .5 --data.actions auto"
    config = parse_train_arguments(f"--config {experiment} --workdir w {given}".split()).settings
    assert (config.data.datasets, config.data.weights, config.data.actions) == (("some/one", "two"), (2.0, 0.5), "auto")
    assert "data.weights is (1.0,)" in refuse(
        "--config", experiment, "--workdir", "w", *f"{given} --data.weights 1".split()
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("x = 1", "defines no get_config"),
        ("def get_config():\n    return 3", "must return a melodjinn_jax.config.Config"),
        ("def get_config(:", "cannot be run"),
        ("import nothing_of_this_name", "cannot be run"),
        ("raise SystemError('a\\nb')", "cannot be run"),
    ],
)
def test_an_experiment_that_is_none(tmp_path, content, complaint):
    file = tmp_path / "bad.py"
    file.write_text(content)
    text = refuse("--config", str(file), "--workdir", "w")
    assert complaint in text
    assert "bad.py" in text


def test_no_such_experiment():
    assert "nowhere.py: no such file" in refuse("--config", "nowhere.py", "--workdir", "w")
    with pytest.raises(UserError, match="not a Python file"):
        load_experiment(__file__.replace("test_command_line.py", "../README.md"))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--data.num-drumz 5", "--data.num-drums"),
        ("--data.num-drums five", "--data.num-drums"),
        ("--data.rhythm samba", "--data.rhythm"),
        ("--data.num-drums 6", "data.num_drums is 6"),
        ("--data.num-drums 0", "data.num_drums is 0"),
        ("--seed -1", "seed is -1"),
        ("--training.batch-size 0", "training.batch_size is 0"),
        ("--training.crop-frames 200", "training.crop_frames is 200"),
        ("--dynamics.num-heads 5", "dynamics.dim is 64"),
        ("--dynamics.max-mask-rate 1.5", "dynamics.max_mask_rate is 1.5"),
        ("--latent-actions.bottleneck fsq", "phases.discover_steps is 150"),
        ("--phases.discover-steps 0", "latent_actions.codebook_init"),
        ("--phases.freeze-deadline 100", "phases.freeze_deadline is 100"),
        ("--lam-optimizer.learning-rate nan", "lam_optimizer.learning_rate is nan"),
        ("--data.min-velocity 0", "data.min_velocity is 0"),
        ("--latent-actions.action-stride 5", "training.crop_frames is 48"),
        ("--latent-actions.horizon 0", "latent_actions.horizon is 0"),
        ("--dynamics.action-block 3", "dynamics.action_block is 3: it must lie in [0, dynamics.num_layers), 3"),
        ("--training.steps 300", "training.steps is 300: the dynamics model would start at step 300 and never play"),
        ("--training.steps 200 --evaluation.generate false", "train longer, or set runtime.evaluate false"),
        ("--phases.freeze never", "phases.freeze is never: with phases.dynamics_start frozen"),
        ("--evaluation.generate false --evaluation.frames 200", "evaluation.frames is 200"),
    ],
)
def test_an_override_that_cannot_work_is_named(experiment, override, complaint):
    assert complaint in refuse("--config", experiment, "--workdir", "w", *override.split())


def test_a_missing_workdir_is_named(experiment):
    assert "--workdir" in refuse("--config", experiment)


@given(
    st.builds(
        DataConfig,
        num_drums=st.integers(-2, 8),
        min_velocity=st.floats(allow_nan=True),
        clip_frames=st.integers(-5, 200),
        train_clips=st.integers(-5, 600),
    ),
    st.builds(TrainingConfig, crop_frames=st.integers(-5, 200), batch_size=st.integers(-5, 5)),
    st.builds(
        LatentActionConfig,
        dim=st.integers(-4, 64),
        num_heads=st.integers(-1, 8),
        action_stride=st.integers(1, 5),
        fsq_levels=st.tuples(st.integers(0, 4)),
        bottleneck=st.sampled_from(["fsq", "ema_vq"]),
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_configuration_is_accepted_or_refused_in_one_sentence(data, training, actions):
    config = dataclasses.replace(Config(), data=data, training=training, latent_actions=actions)
    try:
        check_config(config)
    except UserError as error:
        text = str(error)
        assert " is " in text
        assert "\n" not in text
    else:
        assert training.crop_frames <= data.clip_frames


def test_a_user_error_becomes_one_line_and_status_2(capsys):
    @reports_user_errors
    def main():
        raise UserError("the file x is empty: give another")

    assert main() == 2
    assert capsys.readouterr().err == "error: the file x is empty: give another\n"
