"""The work directory: one run per directory; metrics that resume exactly; stop signals."""

import dataclasses
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import typing
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import Config, DataConfig, RuntimeConfig
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.metrics import NON_FINITE, MetricsWriter, Progress, read_metrics
from melodjinn_jax.training.stop import StopSignal
from melodjinn_jax.training.workdir import WorkDir, load_config

SCALARS = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False) | st.integers(0, 9),
    str: st.text(),
}


def any_value(kind):
    """Any value of a field's type."""
    if dataclasses.is_dataclass(kind):
        return st.builds(kind, **{name: any_value(hint) for name, hint in typing.get_type_hints(kind).items()})
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return st.lists(any_value(typing.get_args(kind)[0]), max_size=3).map(tuple)
    return SCALARS[kind]


def leaf_fields(kind=Config, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    leaves = []
    for name, hint in typing.get_type_hints(kind).items():
        leaves += leaf_fields(hint, (*prefix, name)) if dataclasses.is_dataclass(hint) else [(*prefix, name)]
    return leaves


def changed(config, path: tuple[str, ...]):
    """`config` with the field at `path` set to another value of its type."""
    name, *rest = path
    old = getattr(config, name)
    if rest:
        return replace(config, **{name: changed(old, tuple(rest))})
    hint = typing.get_type_hints(type(config))[name]
    if typing.get_origin(hint) is typing.Literal:
        new = next(option for option in typing.get_args(hint) if option != old)
    elif isinstance(old, bool):
        new = not old
    else:
        new = old + {str: "x", int: 1, float: 1.0, tuple: (1,)}[type(old)]
    return replace(config, **{name: new})


@settings(max_examples=50, deadline=None)
@given(config=any_value(Config))
def test_config_is_read_back_equal(config):
    with tempfile.TemporaryDirectory() as path:
        with WorkDir.create_or_open(path, config):
            assert load_config(path) == config
        with WorkDir.create_or_open(path, config) as workdir:
            assert workdir.changes == ()


def begin(path, config):
    """A run of which something has come."""
    WorkDir.create_or_open(path, config).close()
    (path / "checkpoints").mkdir(exist_ok=True)


def test_a_run_of_which_nothing_came_does_not_claim_its_work_directory(tmp_path):
    WorkDir.create_or_open(tmp_path, Config()).close()
    WorkDir.create_or_open(tmp_path, Config(seed=1)).close()
    assert load_config(tmp_path) == Config(seed=1)


@pytest.mark.parametrize("field", leaf_fields(), ids=".".join)
def test_every_setting_is_either_identity_or_operational(tmp_path, field):
    old, dotted = Config(), ".".join(field)
    new = changed(old, field)
    begin(tmp_path, old)
    if field[0] in ("runtime", "evaluation"):
        with WorkDir.create_or_open(tmp_path, new) as workdir:
            assert len(workdir.changes) == 1
            assert workdir.changes[0].startswith(f"{dotted} was ")
        assert load_config(tmp_path) == new
    else:
        with pytest.raises(UserError, match=rf"\({dotted} was .*use another --workdir") as failure:
            WorkDir.create_or_open(tmp_path, new)
        assert "\n" not in str(failure.value)
        assert load_config(tmp_path) == old


def test_all_differences_are_listed_with_both_values(tmp_path):
    begin(tmp_path, Config())
    new = replace(Config(seed=7), data=DataConfig(num_drums=5), runtime=RuntimeConfig(log_every=3))
    with pytest.raises(UserError, match=r"seed was 0 and is now 7; data\.num_drums was 3 and is now 5") as failure:
        WorkDir.create_or_open(tmp_path, new)
    assert "log_every" not in str(failure.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "\x00" + text, "damaged"),
        (lambda text: "[]", "holds no settings"),
        (lambda text: text.replace('"num_drums"', '"drums"'), "unknown field data.drums"),
        (lambda text: text.replace('"seed": 0,', "", 1), "missing field seed"),
        (lambda text: text.replace('"num_drums": 3', '"num_drums": "3"'), "data.num_drums cannot be '3'"),
        (lambda text: text.replace('"num_drums": 3', '"num_drums": true'), "data.num_drums cannot be True"),
        (lambda text: text.replace('"rhythm": "random"', '"rhythm": "waltz"'), "data.rhythm cannot be 'waltz'"),
    ],
)
def test_damaged_config_is_refused(tmp_path, damage, message):
    WorkDir.create_or_open(tmp_path, Config()).close()
    file = tmp_path / "config.json"
    file.write_text(damage(file.read_text()))
    for action in (lambda: load_config(tmp_path), lambda: WorkDir.create_or_open(tmp_path, Config())):
        with pytest.raises(UserError, match=message):
            action()


def test_a_folder_that_is_no_work_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(UserError, match="no work directory"):
            load_config(path)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--workdir .* cannot be written"):
            WorkDir.create_or_open(path, Config())
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no config.json"):
        WorkDir.create_or_open(tmp_path, Config())


def test_two_trainers_never_share_a_work_directory(tmp_path):
    with WorkDir.create_or_open(tmp_path, Config()):
        with pytest.raises(UserError, match="another process"):
            WorkDir.create_or_open(tmp_path, Config())
        assert load_config(tmp_path) == Config()  # reading is free
    begin(tmp_path, Config())
    with pytest.raises(UserError, match="belongs to a run") as refusal:  # whose traceback keeps all locals alive
        WorkDir.create_or_open(tmp_path, Config(seed=1))
    assert refusal.tb is not None
    WorkDir.create_or_open(tmp_path, Config()).close()  # neither the end nor a refusal holds on to the lock


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


# Metrics

VALUES = st.recursive(
    st.floats() | st.integers() | st.booleans() | st.none() | st.text().filter(lambda text: text not in NON_FINITE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(min_size=1).filter(lambda key: key != "step"), VALUES, max_size=3), max_size=8)


def write_rows(path: Path, rows: list[dict], resume_step: int | None, first: int = 0) -> None:
    with MetricsWriter(path, resume_step) as writer:
        for step in range(first, len(rows)):
            writer.write(step, rows[step])


def same(a, b) -> bool:
    return repr(a) == repr(b)  # NaN equals itself, and True is not 1


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_every_value_comes_back_and_every_line_is_strict_json(rows):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_rows(path, rows, None)
        assert same(read_metrics(path), [{"step": step, **row} for step, row in enumerate(rows)])
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, data=st.data())
def test_killed_and_resumed_file_equals_an_uninterrupted_one(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_rows(path, rows, None)
        whole = path.read_bytes()
        resume_step = data.draw(st.integers(-1, len(rows) - 1))
        lines = whole.splitlines(keepends=True)
        # Killed at any byte after the lines that precede the checkpoint.
        end = data.draw(st.integers(sum(map(len, lines[: resume_step + 1])), len(whole)))
        path.write_bytes(whole[:end])
        assert len(read_metrics(path)) == whole[:end].count(b"\n")
        write_rows(path, rows, resume_step, first=resume_step + 1)
        assert path.read_bytes() == whole


def test_new_run_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    write_rows(path, [{"loss": 1.0}], None)
    write_rows(path, [{"loss": 2.0}], None)
    assert read_metrics(path) == [{"step": 0, "loss": 2.0}]


def test_numbers_of_jax_and_numpy_are_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"a": jnp.float32(0.5), "b": np.int64(3), "c": jnp.arange(2), "d": jnp.bfloat16(2), "e": np.float32("inf")}
    write_rows(path, [values], None)
    assert read_metrics(path) == [{"step": 0, "a": 0.5, "b": 3, "c": [0, 1], "d": 2.0, "e": math.inf}]


@pytest.mark.parametrize("line", [b"{]", b"\xff\xfe", b"[1]", b"{}", b'{"step": "1"}', b""])
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    for action in (lambda: read_metrics(path), lambda: MetricsWriter(path, 2)):
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
            action()


def test_metrics_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file"):
        MetricsWriter(tmp_path / "nothing" / "metrics.jsonl", None)
    with MetricsWriter(tmp_path / "metrics.jsonl", None) as writer:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large"):
                writer.write(1, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_progress_shows_every_part_of_the_status_in_plain_lines():
    out = io.StringIO()
    with Progress(total=20, start=10, file=out, interval=0.0) as progress:
        progress.update(11, "discover", {"lam_loss": 0.123456, "actions": 4, "frames_per_second": 23456.7})
        progress.update(20)
    first, last = out.getvalue().splitlines()
    for part in ("step 11/20", "discover", "lam_loss 0.123", "actions 4", "frames_per_second 23457"):
        assert part in first
    assert "step 20/20" in last
    assert "actions 4" in last


def test_progress_is_silent_between_intervals_and_when_switched_off():
    out = io.StringIO()
    with Progress(total=1000, file=out, interval=3600.0) as progress:
        for step in range(1, 1000):
            progress.update(step, "discover", {"loss": 1.0})
    assert len(out.getvalue().splitlines()) == 1
    off = io.StringIO()
    with Progress(total=10, enabled=False, file=off, interval=0.0) as progress:
        progress.update(10, "frozen", {"loss": 1.0})
        progress.message("frozen at step 5")
    assert off.getvalue() == "frozen at step 5\n"


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress(total=20, start=5, file=out) as progress:
        progress.update(20, "frozen", {"dynamics_loss": 2.5})
    for part in ("100%", "20/20", "frozen, dynamics_loss 2.5"):
        assert part in out.getvalue()


# Stop signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_only_asks_to_stop_and_handlers_come_back(number, status):
    previous = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested()
        assert stop.exit_status == 0
        signal.raise_signal(number)
        assert stop.requested()
        signal.raise_signal(signal.SIGTERM)  # a scheduler may repeat itself
        assert stop.exit_status == status
    assert signal.getsignal(number) is previous


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_further_ctrl_c_ends_the_process_at_once(first):
    code = f"""
import signal
from melodjinn_jax.training.stop import StopSignal
with StopSignal():
    try:
        signal.raise_signal(signal.{first})
        signal.raise_signal(signal.SIGINT)
    finally:
        print("not at once")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "stopped without saving" in done.stderr
