"""Training: phases and their states, one compilation each, exact resume, and what must not be saved."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, batch_of, random_waveform, tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import LatentActionConfig, OptimizerConfig, PhasesConfig
from melodjinn_jax.training.optimizer import learning_rate
from melodjinn_jax.training.phases import (
    PhaseMachine,
    PhaseRecord,
    keep_key_names,
    number_keys,
    worst_key_agreement,
)
from melodjinn_jax.training.state import Models, Phase, abstract_state
from melodjinn_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parent.parent


def run_phases(models: Models, rng, steps: int):
    """Train; yields (step, state, record, jitted step of the phase just done)."""
    machine = PhaseMachine(models, random_waveform(rng, 8, 48))
    state, record = machine.start({}, False)
    train_steps = {}
    for step in range(1, steps + 1):
        train_step = train_steps.setdefault(record.phase, make_train_step(models, record.phase))
        state, _ = train_step(state, batch_of(rng, models))
        done = record.phase
        state, record = machine.advance(state, record, step)
        yield step, state, record, done, train_step


REGIMES = {
    "reconstruction": {},
    "joint": {"phases": PhasesConfig(4, dynamics_start="quantise", freeze_deadline=8, check_every=2, probe_clips=8)},
    "dynamics": {
        "latent_actions": LatentActionConfig(dim=16, num_heads=2, latent_dim=4, window=6, gradient="dynamics")
    },
    "classical": {
        "phases": PhasesConfig(0, freeze_deadline=8, check_every=2, probe_clips=8),
        "latent_actions": LatentActionConfig(
            dim=16, num_heads=2, latent_dim=4, window=6, codebook_init="random", reset_dead_codes=True
        ),
    },
    "fsq": {
        "phases": PhasesConfig(0, freeze_deadline=8, check_every=2, probe_clips=8),
        "latent_actions": LatentActionConfig(dim=16, num_heads=2, window=6, bottleneck="fsq"),
    },
    "stride": {
        "latent_actions": LatentActionConfig(dim=16, num_heads=2, latent_dim=4, window=6, action_stride=4),
        "lam_optimizer": OptimizerConfig(schedule="wsd"),
    },
}


def test_a_resumed_run_compiles_no_more_than_a_new_one(rng):
    models = tiny_models()
    machine = PhaseMachine(models, random_waveform(rng, 8, 48))
    state, record = machine.start({}, False)
    # A loaded state is bound to its device.
    state = jax.device_put(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    train_steps = {}
    for step in range(1, 12):
        train_step = train_steps.setdefault(record.phase, make_train_step(models, record.phase))
        state, _ = train_step(state, batch_of(rng, models))
        state, record = machine.advance(state, record, step)
    assert [train_step._cache_size() for train_step in train_steps.values()] == [1, 1, 1]


@pytest.mark.parametrize("regime", REGIMES)
def test_each_regime_goes_through_its_phases_and_compiles_each_step_once(regime, rng):
    models = tiny_models(**REGIMES[regime])
    seen = []
    for _, state, record, done, train_step in run_phases(models, rng, 12):
        seen.append(done)
        assert train_step._cache_size() == 1
        # The state of every phase is what its parts say, so that a checkpoint of any step can be loaded.
        abstract = abstract_state(models, sorted(state))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
        assert PhaseRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert seen == sorted(seen, key=list(Phase).index)
    assert record.phase is Phase.FROZEN
    assert (Phase.DISCOVER in seen) == (models.config.phases.discover_steps > 0)
    assert "lam_opt" not in state
    assert int(state["first_bad_step"]) == -1


@pytest.mark.parametrize("phase", Phase)
def test_steps_of_one_dispatch_are_the_steps_of_many(phase, rng):
    models = tiny_models()
    machine = PhaseMachine(models, random_waveform(rng, 8, 48))
    state, record = machine.start({}, False)
    for step, before in ((4, Phase.DISCOVER), (8, Phase.QUANTISE)):
        if record.phase is not phase:
            state, record = machine.advance({**state, "step": jnp.asarray(step, jnp.int32)}, record, step)
            assert record.phase is not before
    batches = [batch_of(rng, models) for _ in range(3)]
    alone = jax.tree.map(jnp.copy, state)
    train_step, train_steps = make_train_step(models, phase), make_train_step(models, phase, 3)
    for batch in batches:
        alone, of_last = train_step(alone, batch)
    together, metrics = train_steps(state, {name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
    assert int(together["step"]) == int(alone["step"])
    for one, other in zip(jax.tree.leaves((alone, of_last)), jax.tree.leaves((together, metrics)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_frozen_means_frozen(rng):
    frozen = []
    for _, state, record, done, _ in run_phases(tiny_models(), rng, 12):
        if record.phase is Phase.FROZEN:
            frozen.append(jax.device_get({name: state[name] for name in ("lam", "codebook", "key_of_code")}))
            if done is Phase.FROZEN:
                jax.tree.map(np.testing.assert_array_equal, frozen[0], frozen[-1])
    assert len(frozen) > 2


def test_no_gradient_of_the_dynamics_reaches_a_reconstructing_lam(rng):
    joint = tiny_models(**REGIMES["joint"])
    apart = tiny_models()
    lams = []
    for models in (joint, apart):
        *_, last = run_phases(models, np.random.default_rng(5), 7)
        lams.append(jax.device_get(last[1]["lam"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *lams)


def test_a_loss_that_is_not_finite_is_remembered_with_its_first_step(rng):
    models = tiny_models()
    machine = PhaseMachine(models, random_waveform(rng, 8, 48))
    state, record = machine.start({}, False)
    train_step = make_train_step(models, record.phase)
    state, _ = train_step(state, batch_of(rng, models))
    state["feature_scale"] = jnp.float32(np.nan)
    for _ in range(2):
        state, _ = train_step(state, batch_of(rng, models))
    assert int(state["first_bad_step"]) == 2


def test_agreement_is_that_of_the_worst_key():
    before = np.array([[0] * 90 + [1] * 5 + [2] * 5])
    assert worst_key_agreement(before, before) == 1
    swapped = before.copy()
    swapped[0, 90] = 0
    assert worst_key_agreement(before, swapped) == pytest.approx(0.8)
    gone = np.where(before == 2, 0, before)
    assert worst_key_agreement(before, gone) == 0


@given(st.permutations([1, 2, 3]), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_keys_keep_their_names_through_a_new_merge(names, seed):
    codes = np.random.default_rng(seed).integers(0, 5, (4, 50))
    key_of_code = np.array([0, 1, 2, 3, 3])
    renamed = np.array([0, *names])[key_of_code]
    assert np.array_equal(keep_key_names(renamed, codes, key_of_code[codes]), key_of_code)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_numbered_keys_have_no_gaps_and_keep_noop(keys):
    numbered = number_keys(np.array(keys))
    assert set(numbered) - {0} == set(range(1, len(set(keys) - {0}) + 1))
    assert all((a == 0) == (b == 0) for a, b in zip(keys, numbered, strict=True))


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_warm_up_to_their_peak_and_end_low(schedule):
    config = OptimizerConfig(schedule=schedule, warmup_steps=10)
    rates = np.array([float(learning_rate(config, jnp.int32(i), jnp.int32(100))) for i in range(101)])
    assert np.all(np.diff(rates[:11]) > 0)
    assert rates.max() == pytest.approx(2e-3)
    assert np.all(np.diff(rates[10:]) <= 1e-9)
    assert rates[-1] == pytest.approx(2e-3 if schedule == "constant" else 2e-4)


# The whole command, as a user runs it

TINY_EXPERIMENT = """
import sys
sys.path.insert(0, {tests!r})
from conftest import tiny_config
from melodjinn_jax.config import CodecConfig, RuntimeConfig

def get_config():
    return tiny_config(
        codec=CodecConfig(codebook_size=16, steps=4),
        runtime=RuntimeConfig(log_every=1, save_every=3, compile_cache={cache!r}, evaluate=False),
    )
"""


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    file = folder / "tiny.py"
    file.write_text(TINY_EXPERIMENT.format(tests=str(ROOT / "tests"), cache=str(folder / "cache")))
    return file


def command(experiment: Path, workdir: Path, *overrides: str) -> list[str]:
    arguments = ["--config", str(experiment), "--workdir", str(workdir), "--data.path", str(experiment.parent / "data")]
    return [sys.executable, "-m", "melodjinn_jax.train", *arguments, *overrides]


def train(experiment: Path, workdir: Path, *overrides: str, environment=OPTIMISED) -> subprocess.CompletedProcess:
    arguments = command(experiment, workdir, *overrides)
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def lines(workdir: Path) -> list[dict]:
    """The metrics without their clock readings."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("frames_per_second", "speed")} for row in rows]


def leaf_digests(workdir: Path) -> dict:
    """Digests of every array of the newest checkpoint, independent of how it is stored."""
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    from melodjinn_jax.training.manifest import read_manifest

    return {leaf.name: leaf.sha256 for leaf in read_manifest(newest).leaves}


@pytest.fixture(scope="session")
def uninterrupted(experiment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = train(experiment, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_killed_three_times_is_bit_identical_to_one_that_was_not(experiment, uninterrupted, tmp_path):
    """SIGKILL while a save is under way, SIGTERM before the switch to quantise, SIGKILL after the freeze."""
    workdir = tmp_path / "killed"
    for step, number in ((3, signal.SIGKILL), (4, signal.SIGTERM), (9, signal.SIGKILL)):
        process = subprocess.Popen(
            command(experiment, workdir), cwd=ROOT, env=OPTIMISED, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            metrics = workdir / "metrics.jsonl"
            if metrics.exists() and f'"step": {step},' in metrics.read_text():
                process.send_signal(number)
                break
            time.sleep(0.001)
        process.communicate()
        assert process.returncode in (-number, 128 + number)
    done = train(experiment, workdir)
    assert done.returncode == 0, done.stderr
    assert lines(workdir) == lines(uninterrupted)
    assert leaf_digests(workdir) == leaf_digests(uninterrupted)


def test_a_run_goes_on_with_more_steps_per_dispatch_from_any_step(experiment, uninterrupted, tmp_path):
    workdir = tmp_path / "grouped"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())[-1] == "9"
    counts = ("steps-per-dispatch", "log-every", "save-every")
    done = train(experiment, workdir, *(text for name in counts for text in (f"--runtime.{name}", "2")))
    assert done.returncode == 0, done.stderr
    of_step = {row["step"]: row for row in lines(uninterrupted) if "batch_crc" in row}
    new = [row for row in lines(workdir) if "batch_crc" in row and row["step"] > 9]
    assert [row["step"] for row in new] == [10, 12]
    for row in new:
        assert row["batch_crc"] == of_step[row["step"]]["batch_crc"]
        np.testing.assert_allclose(row["cross_entropy"], of_step[row["step"]]["cross_entropy"], rtol=1e-4)


def test_the_same_command_on_a_finished_run_changes_nothing(experiment, uninterrupted):
    before = lines(uninterrupted), leaf_digests(uninterrupted)
    assert train(experiment, uninterrupted).returncode == 0
    assert (lines(uninterrupted), leaf_digests(uninterrupted)) == before


def test_a_stopped_run_says_so_and_exits_like_a_shell(experiment, tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        command(experiment, workdir, "--training.steps", "100000", "--phases.freeze-deadline", "90000"),
        cwd=ROOT,
        env=OPTIMISED,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, said
    assert re.search(r"stopped at step \d+; the same command resumes", said)
    assert leaf_digests(workdir)


def test_another_seed_is_another_run(experiment, uninterrupted):
    done = train(experiment, uninterrupted, "--seed", "1")
    assert done.returncode == 2
    assert "seed was 0 and is now 1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_init_from_takes_the_named_part_and_keeps_a_frozen_lam(experiment, uninterrupted, tmp_path):
    source = leaf_digests(uninterrupted)
    workdir = tmp_path / "next"
    done = train(experiment, workdir, "--seed", "1", "--init-from", f"{uninterrupted}:lam", "--training.steps", "2")
    assert done.returncode == 0, done.stderr
    taken = leaf_digests(workdir)
    for name in taken:
        if name.startswith(("lam/", "codebook/", "key_of_code")):
            assert taken[name] == source[name]
        if name.startswith("dynamics/") and name.endswith("kernel"):
            assert taken[name] != source[name]


@pytest.mark.parametrize(
    ("init_from", "complaint"),
    [("nowhere", "nowhere"), ("{run}:decoder", "lam or dynamics, not decoder")],
)
def test_init_from_what_is_not_there(experiment, uninterrupted, tmp_path, init_from, complaint):
    done = train(experiment, tmp_path / "run", "--init-from", init_from.format(run=uninterrupted))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_learning_rate_that_explodes_stops_with_the_step_and_saves_nothing_bad(experiment, tmp_path):
    workdir = tmp_path / "run"
    done = train(experiment, workdir, "--lam-optimizer.learning-rate", "1e30", "--lam-optimizer.warmup-steps", "0")
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: step \d+: a loss or gradient is not finite", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def evaluated(experiment, tmp_path_factory) -> Path:
    """A tiny run under bfloat16, with its evaluation, in programs compiled like those of the tests that play it."""
    workdir = tmp_path_factory.mktemp("runs") / "evaluated"
    overrides = ("--training.dtype", "bfloat16", "--runtime.evaluate", "true")
    done = train(experiment, workdir, *overrides, environment=None)
    assert done.returncode == 0, done.stderr
    return workdir


def run_command(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"melodjinn_jax.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_ends_with_its_evaluation_in_strict_json_a_report_and_samples(evaluated):
    def refuse(constant):
        raise ValueError(constant)

    results = json.loads((evaluated / "eval.json").read_text(), parse_constant=refuse)
    assert results["step"] == 12
    assert results["phase"] == "frozen"
    for scores in (results, results["sampled"]):
        for name in ("generation_onset_f1", "control_accuracy", "all_keys_accuracy", "noop_clean_fraction"):
            assert 0 <= scores[name] <= 1
    assert (evaluated / "report.html").stat().st_size > 10_000
    assert (evaluated / "samples" / "truth.wav").exists()


def test_evaluating_by_hand_keeps_the_settings_of_the_run(evaluated):
    before = json.loads((evaluated / "eval.json").read_text())
    done = run_command("evaluate", "--workdir", str(evaluated))
    assert done.returncode == 0, done.stderr
    after = json.loads((evaluated / "eval.json").read_text())
    timing = "generation_real_time_factor"
    assert {k: v for k, v in before.items() if k != timing} == {k: v for k, v in after.items() if k != timing}


def test_the_evaluation_plays_actions_with_the_strength_it_is_told(evaluated, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    before = {clip.name: clip.read_bytes() for clip in (workdir / "samples").iterdir()}
    done = run_command("evaluate", "--workdir", str(workdir), "--evaluation.strength", "3")
    assert done.returncode == 0, done.stderr
    after = {clip.name: clip.read_bytes() for clip in (workdir / "samples").iterdir()}
    assert after["truth.wav"] == before["truth.wav"]
    assert after["noop.wav"] != before["noop.wav"], "NOOP is an action too"


def test_generate_plays_actions_and_those_of_a_recording_and_refuses_what_is_not_there(evaluated, tmp_path):
    clip, again = tmp_path / "clip.wav", tmp_path / "again.wav"
    done = run_command("generate", "--workdir", str(evaluated), "--actions", "0x30", "--out", str(clip))
    assert done.returncode == 0, done.stderr
    done = run_command("generate", "--workdir", str(evaluated), "--actions-from", str(clip), "--out", str(again))
    assert done.returncode == 0, done.stderr
    assert clip.stat().st_size == again.stat().st_size
    for arguments, complaint in (
        (("--actions", "0 99", "--out", str(clip)), "there is no key 99"),
        (("--actions", "0x9", "--out", str(tmp_path / "no" / "clip.wav")), "clip.wav"),
        (("--out", str(clip)), "--actions"),
        (("--actions", "0", "--prompt", str(evaluated / "config.json"), "--out", str(clip)), "config.json"),
    ):
        done = run_command("generate", "--workdir", str(evaluated), *arguments)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_session_sounds_the_same_in_another_process_and_is_sampled_anew_bit_for_bit(evaluated, tmp_path):
    from melodjinn_jax.data.audio import write_wav
    from melodjinn_jax.live.prompt import make_prompt
    from melodjinn_jax.live.replay import sample_anew
    from melodjinn_jax.live.session import Sampling, Session
    from melodjinn_jax.live.stream import StreamingGenerator, instrument_of
    from melodjinn_jax.training.run import load_run

    run = load_run(str(evaluated))
    streamer, prompt = StreamingGenerator(run, slots=2), make_prompt(run, "")
    actions = np.random.default_rng(0).integers(0, run.action_space.num_keys + 1, 40)

    def perform(codes: np.ndarray) -> Session:
        session = Session(instrument_of(run), Sampling(seed=7, temperature=1.0), prompt.codes, prompt.actions)
        for index, action in enumerate(actions):
            if index == 30:
                session.change(Sampling(seed=7, temperature=0.5, top_k=4))
            session.append(codes[index], action)
        return session

    draft = perform(np.zeros((40, 2)))
    session = perform(sample_anew(streamer, draft, slot=1)[len(prompt.codes) :])
    take, clip = tmp_path / "take.melodjinn", tmp_path / "here.wav"
    take.write_bytes(session.to_bytes(streamer.made_with(slot=1)))
    write_wav(clip, streamer.render(session.codes))
    for number, extra in enumerate(((), ("--resample", "true"))):
        again = tmp_path / f"{number}.wav"
        arguments = ("--workdir", str(evaluated), "--session", str(take), "--out", str(again), *extra)
        done = run_command("generate", *arguments)
        assert done.returncode == 0, done.stderr
        assert again.read_bytes() == clip.read_bytes()
    assert "100.00% of the codes are those that were played" in done.stderr


def test_actions_of_a_long_recording_do_not_depend_on_its_pieces(evaluated, monkeypatch):
    from melodjinn_jax.evaluation import actions
    from melodjinn_jax.training.run import load_run

    run = load_run(str(evaluated))
    waveform = random_waveform(np.random.default_rng(0), 1, 150).reshape(-1) / np.float32(32768)
    whole = actions.extract_actions(run, waveform)
    assert len(whole) == 149
    monkeypatch.setattr(actions, "PIECE_BLOCKS", 40)
    np.testing.assert_array_equal(whole, actions.extract_actions(run, waveform))
