"""Sweeps: what is refused before anything runs, what is done in which order, what is done again, and what comes out."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax import sweep as command
from melodjinn_jax.config import Config, DataConfig, PhasesConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.experiment import call_in_file, load_experiment
from melodjinn_jax.sweeping.launchers import LAUNCHERS, SCRIPTS, check_launcher, check_names, command_of
from melodjinn_jax.sweeping.plan import Job, Sweep, SweepRun, check_sweep, grid, override, plan_jobs, prepare_runs
from melodjinn_jax.sweeping.report import summary, write_sweep_report
from melodjinn_jax.sweeping.results import read_outcomes
from melodjinn_jax.sweeping.schedule import JobState, Schedule, read_states, write_json
from melodjinn_jax.training.size import dynamics_size, lam_size
from melodjinn_jax.training.state import CodecShape, Models
from melodjinn_jax.training.workdir import load_config

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments" / "scaling"
LABELLED = override(Config(), {"data.datasets": ("d",), "data.actions": "auto"})


def sweep_of(*names: str, **fields) -> Sweep:
    return Sweep("trial", tuple(SweepRun(name, LABELLED, **fields) for name in names))


# Plans


@pytest.mark.parametrize(
    ("sweep", "complaint"),
    [
        (sweep_of("50k", "100k", "50k"), "has two runs named 50k"),
        (sweep_of("a/b"), "a run named 'a/b'"),
        (sweep_of("50K"), "a run named '50K'"),
        (sweep_of("x" * 41), "a run named"),
        (sweep_of("label-0"), "label-0 is a name of its own jobs"),
        (sweep_of(), "has no runs"),
        (dataclasses.replace(sweep_of("a"), name="My sweep"), "the sweep is named 'My sweep'"),
        (Sweep("trial", (SweepRun("a", Config()),)), "the run a of the sweep trial: set data.actions"),
        (Sweep("trial", (SweepRun("a", override(LABELLED, {"dynamics.dim": 3})),)), "the run a .*dynamics.dim is 3"),
        (Sweep("trial", (SweepRun("a", override(LABELLED, {"runtime.evaluate": False})),)), "set runtime.evaluate"),
        (Sweep("trial", sweep_of("a").runs, override(Config(), {"training.steps": 0})), "the run labeller .*steps"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_in_one_sentence(sweep, complaint):
    with pytest.raises(UserError, match=complaint) as refusal:
        check_sweep(sweep)
    assert "\n" not in str(refusal.value)


def test_overrides_and_grids_name_settings():
    assert override(Config(), {"dynamics.dim": 8, "seed": 3}) == dataclasses.replace(
        Config(), seed=3, dynamics=dataclasses.replace(Config().dynamics, dim=8)
    )
    with pytest.raises(UserError, match=r"dynamics\.width"):
        override(Config(), {"dynamics.width": 8})
    sizes = {"small": {"dynamics.dim": 8}, "large": {"dynamics.dim": 16, "dynamics.num_heads": 2}}
    runs = grid(Config(), size=sizes, length={"short": {"training.steps": 10}, "long": {"training.steps": 20}})
    assert list(runs) == ["small-short", "small-long", "large-short", "large-long"]
    assert (runs["large-long"].dynamics.dim, runs["large-long"].training.steps) == (16, 20)


def test_dynamics_runs_wait_for_labels_and_lam_runs_for_their_dataset(tmp_path):
    music = override(Config(), {"data.datasets": ("d",)})
    sweep = Sweep("trial", (SweepRun("a", LABELLED), SweepRun("b", music, "lam")), labeller=Config())
    needs = {job.name: job.needs for job in plan_jobs(sweep, tmp_path)}
    assert needs == {"labeller": (), "label-0": ("labeller",), "a": ("labeller", "label-0"), "b": ("labeller",)}
    assert all(job.needs == () for job in plan_jobs(sweep_of("a"), tmp_path))


def test_every_run_has_its_settings_in_its_work_directory_and_keeps_them(tmp_path):
    sweep = sweep_of("a", "b")
    prepare_runs(sweep, tmp_path)
    assert load_config(tmp_path / "runs" / "a") == load_experiment(f"{tmp_path}/runs/a/config.json") == LABELLED
    (tmp_path / "runs" / "b" / "checkpoints").mkdir()
    changed = dataclasses.replace(sweep, runs=(SweepRun("b", override(LABELLED, {"seed": 5})),))
    with pytest.raises(UserError, match=r"runs/b belongs to a run with other settings \(seed was 0 and is now 5\)"):
        prepare_runs(changed, tmp_path)


@pytest.mark.parametrize("name", ["ladder", "toy_ladder"])
def test_ladders_hold_together_and_are_as_large_as_they_say(name):
    sweep = call_in_file("--sweep", str(EXPERIMENTS / f"{name}.py"), "get_sweep", Sweep, "w")
    check_sweep(sweep)
    codebooks, size = (4, 1024) if name == "ladder" else (2, 256)
    units = {"k": 1e3, "m": 1e6, "b": 1e9}
    held_out, fitted, sizes = {}, {}, {}
    for run in sweep.runs:
        models = Models(run.config, CodecShape(24000, 320, codebooks, size))
        shape = (run.model, run.config.latent_actions, run.config.dynamics, run.config.training.batch_size)
        if shape not in sizes:
            sizes[shape] = lam_size(models) if run.model == "lam" else dynamics_size(models)
        model_size = sizes[shape]
        said = run.name.removeprefix("lam-").split("-")[0]
        assert model_size.parameters == pytest.approx(float(said[:-1]) * units[said[-1]], rel=0.11), run.name
        flops = model_size.flops_per_position * model_size.positions_per_step * run.config.training.steps
        (held_out if run.is_held_out else fitted).setdefault(run.model, []).append(flops)
    for model, flops in held_out.items():
        assert min(flops) >= 2 * max(fitted[model])


# Launchers


def test_a_launcher_without_its_client_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    check_launcher("local")
    for name, launcher in LAUNCHERS.items():
        with pytest.raises(UserError, match=f"--launcher {name}: its client {launcher.client} is not on the PATH"):
            check_launcher(name)
    argv = ["--sweep", str(EXPERIMENTS / "toy_ladder.py"), "--workdir", str(tmp_path / "w"), "--launcher", "slurm"]
    monkeypatch.setattr(sys, "argv", ["sweep", *argv])
    assert command.main() == 2
    assert not (tmp_path / "w").exists()


def test_a_dry_run_prints_all_commands_and_touches_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    sweep = ["sweep", "--sweep", str(EXPERIMENTS / "toy_ladder.py"), "--workdir", str(tmp_path / "w"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", sweep)
    assert command.main() == 0
    printed = capfd.readouterr().out
    for part in ("# labeller\n", "# label-0, after labeller\n", "melodjinn_jax.label", "runs/800k-600/config.json"):
        assert part in printed
    options = "--cluster c --tpu-type v5litepod-16 --image i"
    monkeypatch.setattr(sys, "argv", [*sweep, "--launcher", "xpk", f"--launcher-options={options}"])
    assert command.main() == 0
    assert capfd.readouterr().out.count("xpk workload create") == len(printed.split("# ")) - 1
    monkeypatch.setattr(sys, "argv", [*sweep, "--launcher", "xpk", "--launcher-options=--tpu-typo x"])
    assert command.main() == 2
    assert "--launcher-options --tpu-typo x: --tpu-typo is not an option" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sweep, "--launcher-options=--partition 'gpu"])
    assert command.main() == 2
    assert "--launcher-options --partition 'gpu: a quote is opened and never closed" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_names_that_no_cluster_takes_are_refused_for_a_cluster_only():
    jobs = [Job("200m-warmup-cosine-long", "melodjinn_jax.train", ())]
    check_names("local", "techno-scaling-autumn", jobs)
    check_names("slurm", "techno", jobs)
    with pytest.raises(UserError, match="techno-scaling-autumn-200m-warmup-cosine-long has 45 characters"):
        check_names("slurm", "techno-scaling-autumn", jobs)
    with pytest.raises(UserError, match="begins with 2"):
        check_names("xpk", "200m", jobs)


def test_a_remote_job_is_named_after_its_sweep():
    job = Job("50k", "melodjinn_jax.train", ("--workdir", "a b"))
    argv = command_of("slurm", job, "trial", ["--nodes", "2"])
    assert argv[:5] == [str(SCRIPTS / "slurm.sh"), "--name", "trial-50k", "--nodes", "2"]
    assert argv[-2:] == ["--workdir", "a b"]


# Schedules


def schedule(tmp_path, scripts: dict[str, str], needs=None, **limits) -> tuple[Schedule, dict[str, JobState]]:
    """Jobs that are shell scripts, run in `tmp_path`."""
    jobs = [Job(name, "", (), (needs or {}).get(name, ())) for name in scripts]
    made = Schedule(
        jobs,
        lambda job: ["bash", "-c", f"cd {tmp_path}; {scripts[job.name]}"],
        tmp_path / "logs",
        {name: JobState() for name in scripts},
        lambda: None,
        **limits,
    )
    return made, made.states


def test_jobs_wait_for_what_they_need_and_what_cannot_be_done_is_blocked(tmp_path):
    made, states = schedule(
        tmp_path,
        {"first": "sleep .3; echo 1 > one", "second": "cat one", "bad": "exit 2", "after": "exit", "last": "exit"},
        needs={"second": ("first",), "after": ("bad",), "last": ("after",)},
        limit=3,
    )
    assert not made.run()
    assert {name: state.status for name, state in states.items()} == {
        "first": "done", "second": "done", "bad": "failed", "after": "blocked", "last": "blocked",
    }  # fmt: skip


def test_a_job_that_fails_is_tried_again_but_not_one_that_was_refused(tmp_path):
    flaky = "echo x >> tries; [ $(wc -l < tries) -ge 3 ] || { echo boom; exit 1; }"
    made, states = schedule(tmp_path, {"flaky": flaky, "refused": "echo 'error: no' >&2; exit 2"}, retries=2)
    assert not made.run()
    assert (states["flaky"].status, states["flaky"].attempts) == ("done", 3)
    assert states["refused"] == dataclasses.replace(states["refused"], status="failed", attempts=1, message="error: no")
    (tmp_path / "tries").unlink()
    made, states = schedule(tmp_path, {"flaky": flaky}, retries=1)
    assert not made.run()
    assert (states["flaky"].status, states["flaky"].attempts, states["flaky"].message) == ("failed", 2, "boom")


def test_what_is_done_is_not_done_again_unless_its_product_is_gone(tmp_path):
    product = tmp_path / "eval.json"
    jobs = [Job("a", "", (), (), product)]
    states = {"a": JobState("done")}

    def start(script: str) -> bool:
        return Schedule(
            jobs, lambda job: ["bash", "-c", script], tmp_path / "logs", states, lambda: None, retries=0
        ).run()

    product.touch()
    assert start("exit 1")
    product.unlink()
    assert not start("exit 0")  # it said that all is well, and wrote nothing
    assert "eval.json" in states["a"].message
    assert start(f"touch {product}")


def test_asked_to_stop_it_stops_its_jobs_and_waits_until_they_have_saved(tmp_path):
    code = f"""
import sys
from pathlib import Path
from melodjinn_jax.sweeping.plan import Job
from melodjinn_jax.sweeping.schedule import JobState, Schedule
work = Path({str(tmp_path)!r})
script = "trap 'sleep .3; touch saved; exit 143' TERM; touch begun; while :; do sleep .1; done"
states = {{"a": JobState()}}
made = Schedule([Job("a", "", ())], lambda job: ["bash", "-c", f"cd {{work}}; {{script}}"], work, states, lambda: None)
try:
    made.run()
except KeyboardInterrupt:
    print(states["a"].status)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "waiting\n"
    assert (tmp_path / "saved").exists()


def test_a_damaged_state_is_named(tmp_path):
    file = tmp_path / "sweep.json"
    assert read_states(file) == {}
    for content in ("{", "[]", '{"jobs": {"a": {"colour": 1}}}', '{"jobs": {"a": {"attempts": "2"}}}', "\x00"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"sweep\.json is damaged"):
            read_states(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["jobs", "status", "a"]), inner),
    max_leaves=6,
)


@given(content=JSON)
def test_any_json_is_states_or_damaged(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("states") / "sweep.json"
    file.write_text(json.dumps(content))
    with contextlib.suppress(UserError):
        assert all(isinstance(state.attempts, int) for state in read_states(file).values())


@given(states=st.dictionaries(st.text(max_size=5), st.builds(JobState, message=st.text(), attempts=st.integers(0, 9))))
def test_states_come_back(tmp_path_factory, states):
    file = tmp_path_factory.mktemp("states") / "sweep.json"
    write_json(file, {"name": "trial"}, states)
    assert read_states(file) == states


# The whole


def test_the_example_of_the_docs_is_a_sweep(monkeypatch):
    code = (ROOT / "docs" / "sweeps.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(ROOT)
    names = {"Sweep": Sweep, "SweepRun": SweepRun, "grid": grid, "override": override}
    exec(code, space := names | {"load_experiment": load_experiment})
    sweep = space["get_sweep"]("w")
    check_sweep(sweep)
    assert [run.name for run in sweep.runs] == ["small-slow", "small-fast", "large-slow", "large-fast"]


def test_what_a_job_said_is_text_in_the_report(tmp_path):
    states = {"a": JobState("failed", 3, message="<script>alert(1)</script>")}
    write_sweep_report(tmp_path / "report.html", "trial", [], [], states)
    page = (tmp_path / "report.html").read_text()
    assert "a: &lt;script&gt;alert(1)" in page
    assert "0 of 1 jobs done" in page
    assert "a failed after 3 attempt(s)" in summary([], [], states)


def tiny_sweep(workdir: Path) -> Sweep:
    """A tiny LAM on some seconds of drums, and a tiny dynamics model on its labels."""
    lam = override(
        tiny_config(),
        {
            "data.path": f"{workdir}/dataset",
            "codec.steps": 8,
            "codec.codebook_size": 16,
            "phases": PhasesConfig(discover_steps=2, freeze="step", freeze_deadline=4, check_every=2, probe_clips=8),
            "training.steps": 4,
            "evaluation.generate": False,
            "evaluation.frames": 32,
            "runtime.progress": False,
        },
    )
    labelled = {"data": DataConfig(datasets=(f"{workdir}/dataset",), actions="auto")}
    return Sweep("tiny", (SweepRun("one", override(lam, labelled), is_held_out=True),), lam)


def test_a_sweep_from_sound_to_report_and_again(tmp_path):
    sweep = tiny_sweep(tmp_path)
    check_sweep(sweep)
    prepare_runs(sweep, tmp_path)
    arguments = command.SweepArguments("file", str(tmp_path))
    jobs = plan_jobs(sweep, tmp_path)
    assert command.run_sweep(sweep, jobs, arguments, []) == 0
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert {name: state["status"] for name, state in content["jobs"].items()} == dict.fromkeys(
        ("labeller", "label-0", "one"), "done"
    )
    (run,) = content["runs"]
    evaluation = json.loads((tmp_path / "runs" / "one" / "eval.json").read_text())
    assert run["loss"] == evaluation["cross_entropy_true_actions"] > 0
    assert run["parameters"] == evaluation["parameters"]["dynamics"]
    assert run["positions"] == 4 * 4 * 24 * 2  # steps, clips, frames, codebooks
    lam = json.loads((tmp_path / "labeller" / "eval.json").read_text())
    assert lam["reconstruction"] > 0
    assert "cross_entropy_true_actions" not in lam  # its dynamics model never trained
    assert "one (kept out)" in (tmp_path / "report.html").read_text()
    assert command.run_sweep(sweep, jobs, arguments, []) == 0  # nothing is left to do
    again = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert again == content["jobs"]
    (tmp_path / "runs" / "one" / "eval.json").write_text("{}")
    with pytest.raises(UserError, match=r"one/eval\.json does not hold"):
        read_outcomes(sweep, tmp_path)
