"""The scripts of launch/, with fakes of the clients on the PATH: what they ask for, and what they do when it fails."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
SCRIPTS = sorted(path for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
COMMAND = ["python3", "-m", "melodjinn_jax.train", "--config", "a b.py"]
OPTIONS = {
    "slurm.sh": ["--nodes", "2"],
    "gke_xpk.sh": ["--cluster", "c", "--tpu-type", "v5litepod-16", "--image", "i"],
    "tpu_vm.sh": ["--zone", "z", "--accelerator-type", "v5litepod-16", "--spot", "--nfs", "10.0.0.2:/share"],
    "hosts.sh": ["--hosts", "hosts", "--dir", "."],
}
CLIENTS = {"slurm.sh": "sbatch", "gke_xpk.sh": "xpk", "tpu_vm.sh": "gcloud", "hosts.sh": "ssh"}


@pytest.fixture
def bin(tmp_path, monkeypatch):
    """A folder of fakes before everything else on the PATH; each notes its words in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("MELODJINN_POLL_SECONDS", "0.05")
    monkeypatch.setenv("MELODJINN_GRACE_SECONDS", "0.3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("one\ntwo  # the second\n\n")
    return folder


def fake(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder.parent}/calls"\n{script}\n')
    file.chmod(0o755)


def launch(script: str, *options: str, command: list[str] = COMMAND) -> subprocess.CompletedProcess:
    argv = [str(LAUNCH / script), "--name", "trial", *OPTIONS[script], *options, "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def calls() -> list[str]:
    return Path("calls").read_text().splitlines() if Path("calls").exists() else []


def count(prefix: str) -> int:
    return sum(call.startswith(prefix) for call in calls())


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_have_no_lint():
    argv = ["shellcheck", "-x", "-P", str(LAUNCH), *map(str, LAUNCH.glob("*.sh"))]
    assert subprocess.run(argv, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_dry_run_prints_the_commands_as_a_shell_reads_them_and_calls_no_client(bin, script):
    fake(bin, CLIENTS[script.name], "exit 1")
    done = launch(script.name, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert calls() == []
    assert CLIENTS[script.name] in done.stdout
    # As it stands there, however often it is quoted.
    assert r"a\ b.py" in done.stdout.replace("\\\\", "\\").replace("\\\\", "\\")
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bad_input_is_one_sentence_before_anything_is_asked_for(bin, script, monkeypatch):
    fake(bin, CLIENTS[script.name], "exit 1")
    for options, complaint in (
        (["--nodez", "2"], "--nodez is not an option"),
        (["--name", "Trial_1"], "--name 'Trial_1'"),
        (["--name"], "--name: its value is missing"),
    ):
        done = launch(script.name, *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert complaint in done.stderr
    done = launch(script.name, command=[])
    assert (done.returncode, done.stderr[:17]) == (2, "error: no command")
    assert calls() == []
    assert launch(script.name, "--help").stdout.count("launch/") >= 1
    # Without its client; the few programs that the script itself needs are there.
    for name in ("bash", "dirname", "sed", "env"):
        (bin / name).symlink_to(shutil.which(name))
    (bin / CLIENTS[script.name]).unlink()
    monkeypatch.setenv("PATH", str(bin))
    done = launch(script.name)
    assert (done.returncode, done.stderr) == (
        2, f"error: {CLIENTS[script.name]} is not on the PATH: install it (docs/cloud.md)\n",
    )  # fmt: skip


def test_a_required_option_is_asked_for():
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "--name", "a", "--dry-run", "--", "x", "y"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: --zone is missing: see tpu_vm.sh --help\n")


# SLURM: the real one is what docs/cloud.md says was tried; here a fake runs the job's script at once


def slurm(bin: Path, step: str) -> None:
    fake(bin, "sbatch", 'echo "Submitted batch job 7"; cat > job.sh; SLURM_JOB_ID=7 bash job.sh')
    fake(bin, "srun", f"echo it says so > trial-7.out; {step}")
    fake(bin, "scontrol", "")


def test_slurm_ends_as_the_command_does_and_a_run_that_was_stopped_is_queued_again(bin):
    for status in (0, 3, 143):
        Path("calls").unlink(missing_ok=True)
        slurm(bin, f"exit {status}")
        done = launch("slurm.sh")
        assert (done.returncode, done.stdout) == (status, "Submitted batch job 7\nit says so\n")
        assert count("scontrol requeue 7") == (status == 143)
    assert "--nodes 2 --ntasks-per-node 8" in calls()[0]
    assert any(call.endswith("melodjinn_jax.train --config a b.py") for call in calls() if call.startswith("srun"))


# xpk


def test_xpk_creates_a_workload_that_restarts_and_waits_for_it(bin):
    fake(bin, "xpk", "exit $([ $2 = list ] && echo 125 || echo 0)")
    done = launch("gke_xpk.sh", "--num-slices", "2", "--storage", "share")
    assert done.returncode == 125
    assert [call.split()[:3] for call in calls()] == [["xpk", "workload", "create"], ["xpk", "workload", "list"]]
    for part in ("--num-slices 2", "--max-restarts 100", "--storage share", r"exec python3 -m melodjinn_jax.train"):
        assert part in calls()[0]
    fake(bin, "xpk", "exit 1")
    assert launch("gke_xpk.sh").returncode == 1
    assert count("xpk workload list") == 1  # what was not created is not waited for


# Cloud TPU: the fake's slices are numbered, and what becomes of each is said by two lines of bash

GCLOUD = """
touch slices
slice=$(wc -l < slices)
case "$*" in
  *"queued-resources create"*) echo x >> slices ;;
  *"queued-resources describe"*) {state} ;;
  *"tpu-vm ssh"*exec*) {command} ;;
esac
"""


def gcloud(bin: Path, state: str, command: str) -> None:
    fake(bin, "gcloud", GCLOUD.format(state=state, command=command))
    fake(bin, "git", "")


def test_a_slice_that_is_preempted_is_replaced_and_the_command_goes_on(bin):
    gcloud(
        bin,
        state='[ "$slice" = 1 ] && [ -e lost ] && echo SUSPENDED || echo ACTIVE',
        command='[ "$slice" != 1 ] || { touch lost; exit 255; }',
    )
    done = launch("tpu_vm.sh")
    assert done.returncode == 0
    assert "the slice was lost" in done.stderr
    assert count("gcloud compute tpus queued-resources create trial") == 2
    assert count("gcloud compute tpus queued-resources delete trial") == 2
    runs = [call for call in calls() if "exec python3 -m melodjinn_jax.train" in call]
    assert len(runs) == len(set(runs)) + 1 == 2  # the same command, twice
    assert sum("mount -t nfs 10.0.0.2:/share /mnt/melodjinn" in call for call in calls()) == 2


def test_a_slice_that_never_comes_is_asked_for_again_as_often_as_said(bin):
    gcloud(bin, state="echo FAILED", command="")
    assert launch("tpu_vm.sh", "--preemptions", "2").returncode == 75
    assert count("gcloud compute tpus queued-resources create") == 3


def test_a_command_that_fails_ends_the_script_and_gives_the_slice_back(bin):
    gcloud(bin, state="echo ACTIVE", command="exit 3")
    assert launch("tpu_vm.sh").returncode == 3
    assert count("gcloud compute tpus queued-resources create") == 1
    assert count("gcloud compute tpus queued-resources delete") == 1


def test_a_script_that_is_asked_to_stop_gives_the_slice_back(bin):
    gcloud(bin, state="echo ACTIVE", command="touch begun; sleep 30")
    argv = [LAUNCH / "tpu_vm.sh", "--name", "trial", *OPTIONS["tpu_vm.sh"], "--", *COMMAND]
    process = subprocess.Popen(argv, process_group=0, stdout=subprocess.DEVNULL)
    while not Path("begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    assert count("gcloud compute tpus queued-resources delete") == 1


# Hosts: the fake runs the command here


def test_all_hosts_run_the_command_as_one_and_start_again_when_one_fails(bin):
    fake(bin, "ssh", 'exec bash -c "${@: -1}"')
    script = (
        "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS >> ran; "
        "[ $(wc -l < ran) -gt 2 ] || { [ $JAX_PROCESS_ID = 1 ] && sleep .3 && exit 1 || exec sleep 30; }"
    )
    done = launch("hosts.sh", "--port", "99", command=["bash", "-c", script])
    assert done.returncode == 0, done.stderr
    ran = sorted(Path("ran").read_text().splitlines())
    assert ran == ["0 of 2 at one:99", "0 of 2 at one:99", "1 of 2 at one:99", "1 of 2 at one:99"]
    assert "a process failed; stopping all (start 1 of 11)" in done.stderr


def test_hosts_give_up_after_the_restarts_allowed(bin):
    fake(bin, "ssh", 'exec bash -c "${@: -1}"')
    done = launch("hosts.sh", "--restarts", "1", command=["bash", "-c", "echo x >> ran; exit 1"])
    assert done.returncode == 1
    starts = [line for line in done.stderr.splitlines() if "a process failed" in line]
    assert [line.rpartition("(")[2] for line in starts] == ["start 1 of 2)", "start 2 of 2)"]
    # The first that fails may have the other stopped before that has run.
    assert 2 <= len(Path("ran").read_text().splitlines()) <= 4
    Path("hosts").write_text("# none\n")
    assert "it names no host" in launch("hosts.sh").stderr


def test_hosts_do_not_repeat_what_was_refused_as_wrong_input(bin):
    fake(bin, "ssh", 'exec bash -c "${@: -1}"')
    done = launch("hosts.sh", "--restarts", "9", command=["bash", "-c", "exit 2"])
    assert done.returncode == 2
    assert done.stderr.count("a process failed") == 1


def test_hosts_asked_to_stop_ask_the_command_to(bin):
    fake(bin, "ssh", 'exec bash -c "${@: -1}"')
    save = "trap 'touch saved-$JAX_PROCESS_ID; exit 143' TERM; touch begun-$JAX_PROCESS_ID; while :; do sleep .05; done"
    argv = [LAUNCH / "hosts.sh", "--name", "trial", *OPTIONS["hosts.sh"], "--", "bash", "-c", save]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while not (Path("begun-0").exists() and Path("begun-1").exists()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert Path("saved-0").exists()
    assert Path("saved-1").exists()
