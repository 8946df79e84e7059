"""Checkpoints hold exactly what was saved, and nothing else is ever loaded."""

import itertools
import json
import random
import resource
import runpy
import shutil
import subprocess
import sys
import threading
from collections import Counter, namedtuple
from contextlib import contextmanager
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melodjinn_jax.errors import UserError
from melodjinn_jax.training import manifest as manifests
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.manifest import DamagedCheckpointError, array_digest, read_manifest, verify

ROOT = Path(__file__).parents[1]
BIG = {"kernel": np.random.default_rng(0).standard_normal((200, 100))}  # does not compress
Moments = namedtuple("Moments", ["count", "mu"])


def make_state(seed: int = 0) -> dict:
    normal = jax.random.normal(jax.random.key(seed), (3, 8, 5))
    return {
        "lam": {"layers": [{"kernel": normal[0]}, {"kernel": normal[1].astype(jnp.bfloat16)}]},
        "lam_opt": (Moments(jnp.int32(seed), {0: normal[2]}), ()),
        "keys": {"noise": jax.random.key(seed + 7), "clips": jax.random.split(jax.random.key(seed, impl="rbg"), 3)},
        "step": jnp.uint32(seed),
    }


def make_iterator() -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(1000).seed(3).shuffle().repeat(None).batch(4)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def take(iterator, count: int) -> list:
    return [batch.tolist() for batch in itertools.islice(iterator, count)]


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def raw(leaf) -> tuple:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return str(leaf.dtype), data.shape, data.tobytes()


def assert_same(tree, other) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert [raw(leaf) for leaf in jax.tree.leaves(tree)] == [raw(leaf) for leaf in jax.tree.leaves(other)]


def save_steps(folder: Path, *steps: int, keep: int = 3) -> None:
    with CheckpointStore(folder, keep) as store:
        for step in steps:
            store.save(step, make_state(step), make_iterator(), {"phase": "discover", "step": step})


def flip_a_byte(folder: Path) -> str:
    """Damages the largest file; returns its name."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


@contextmanager
def largest_file(size: int):
    """Writing beyond `size` bytes of any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_everything_comes_back_bit_for_bit(tmp_path):
    state, metadata = make_state(5), {"phase": "frozen", "keys": [0, 1], "loss": 0.1}
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest() is None
        store.save(10, state, make_iterator(), metadata)
        found = store.latest()
        assert found is not None
        assert (found.step, found.metadata) == (10, metadata)
        assert_same(store.load(10, abstract(state), make_iterator()), state)
        # Concrete arrays are as good a target, and leave nothing of themselves in the result.
        assert_same(store.load(10, make_state(1), make_iterator()), state)


def test_iterator_goes_on_with_the_next_batch_though_advanced_during_the_save(tmp_path):
    iterator = make_iterator()
    take(iterator, 3)
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(3, make_state(), iterator, {})
        following = take(iterator, 4)
        store.wait()
        resumed = make_iterator()
        take(resumed, 9)
        store.load(3, make_state(), resumed)
    assert take(resumed, 4) == following


def test_saved_values_are_those_of_the_call_whatever_becomes_of_the_arrays(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    on_device = {f"layer{i}": jnp.full((64, 64), float(i)) for i in range(20)}
    on_host = np.arange(6.0)
    expected = {"device": jax.tree.map(jnp.array, on_device), "host": on_host.copy()}
    with CheckpointStore(tmp_path, keep=1) as store:
        begin = threading.Event()
        store._background.submit(begin.wait)  # nothing is digested before all of what follows
        store.save(1, {"device": on_device, "host": on_host}, make_iterator(), {})
        # JAX may decline to donate a buffer that is being written, so the arrays are deleted as well.
        step(step(on_device))
        for array in on_device.values():
            array.delete()
        on_host[:] = -1
        begin.set()
        store.wait()
        saved = store.read_arrays(1, "device", "host")
    assert_same(saved, expected)


def test_metadata_of_the_call_is_saved(tmp_path):
    metadata = {"phase": "discover"}
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(1, make_state(), make_iterator(), metadata)
        metadata["phase"] = "frozen"
        assert store.latest().metadata == {"phase": "discover"}
        with pytest.raises(TypeError):
            store.save(2, make_state(), make_iterator(), {"phase": object()})
        with pytest.raises(ValueError, match="already"):
            store.save(1, make_state(), make_iterator(), {})


def test_newest_are_kept_and_only_complete_ones_push_older_ones_out(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path, keep=2) as store:
        for step in (1, 2, 3):
            store.save(step, make_state(), make_iterator(), {})
            store.wait()
        assert store.steps() == [2, 3]
        monkeypatch.setattr("melodjinn_jax.training.checkpoint.write_manifest", lambda *_: 1 / 0)
        store.save(4, make_state(), make_iterator(), {})
        with pytest.raises(ZeroDivisionError):
            store.wait()
        assert store.steps() == [2, 3]


def test_parts_are_read_without_the_rest(tmp_path):
    save_steps(tmp_path, 4)
    state, store = make_state(4), CheckpointStore(tmp_path)
    lam = store.read_arrays(4, "lam")
    assert lam.keys() == {"lam"}
    assert isinstance(lam["lam"]["layers"][1]["kernel"], np.ndarray)
    assert raw(lam["lam"]["layers"][1]["kernel"]) == raw(state["lam"]["layers"][1]["kernel"])
    parts = store.read_arrays(4, "step", "keys", "lam_opt/0/mu")
    assert raw(parts["keys"]["clips"]) == raw(state["keys"]["clips"])
    assert raw(parts["lam_opt"][0]["mu"][0]) == raw(state["lam_opt"][0].mu[0])
    assert parts["step"] == 4
    with pytest.raises(UserError, match="holds no dynamics; it holds keys, lam, lam_opt, step"):
        store.read_arrays(4, "lam", "dynamics")
    with pytest.raises(UserError, match="holds no la;"):
        store.read_arrays(4, "la")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda state: state.pop("step"), "step is uint32.* absent here"),
        (lambda state: state.update(more=jnp.zeros(2)), "more is absent in it"),
        (lambda state: state.update(step=jnp.zeros((), jnp.int32)), "step is uint32.*int32"),
        (lambda state: state.update(step=jnp.zeros(1, jnp.uint32)), "step is uint32"),
        (lambda state: state["keys"].update(noise=jax.random.key(0, impl="rbg")), "keys/noise"),
        (lambda state: state["keys"].update(noise=jnp.zeros(2, jnp.uint32)), "keys/noise"),
    ],
)
def test_a_tree_of_another_shape_is_refused(tmp_path_factory, change, name):
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        save_steps(folder, 1)
    target = make_state()
    change(target)
    with pytest.raises(UserError, match=name):
        CheckpointStore(folder).load(1, target, make_iterator())


def test_digest_tells_dtype_and_shape_apart():
    zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32), np.zeros(5, np.float32)]
    assert len({array_digest(array) for array in zeros}) == 4
    assert array_digest(np.arange(6).reshape(2, 3).T) == array_digest(
        np.ascontiguousarray(np.arange(6).reshape(2, 3).T)
    )


# Damage


def test_no_damage_to_any_file_goes_undetected(tmp_path):
    benchmark = runpy.run_path(str(ROOT / "benchmarks/corruption.py"))
    checkpoint = benchmark["write_checkpoint"](tmp_path)
    counts: Counter = Counter()
    for path in [checkpoint, *checkpoint.rglob("*")]:
        is_folder = path.is_dir()
        counts += (
            benchmark["add_file"](checkpoint, path)
            if is_folder
            else benchmark["damage_file"](checkpoint, path, flips=4, small=64)
        )
    assert {kind for kind, _ in counts} == {"flip a bit", "cut short", "extend", "remove", "add a file"}
    assert not [kind for (kind, detected) in counts if not detected]
    verify(checkpoint)


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4)
    names = [flip_a_byte(tmp_path / "4"), flip_a_byte(tmp_path / "3")]
    warnings: list[str] = []
    assert CheckpointStore(tmp_path, warn=warnings.append).latest().step == 2
    assert CheckpointStore(tmp_path).steps() == [2, 3, 4]  # a reader changes nothing
    with CheckpointStore(tmp_path, keep=3, warn=warnings.append) as store:
        assert store.latest().step == 2
        assert_same(store.load(2, make_state(), make_iterator()), make_state(2))
        for step in (3, 4):
            store.save(step, make_state(step), make_iterator(), {})
        assert store.latest().step == 4
        assert store.steps() == [2, 3, 4]
    assert (tmp_path / "3.damaged").is_dir()
    for number, warning in enumerate(warnings):
        assert f"step {4 - number % 2} is damaged" in warning
        assert names[number % 2] in warning
    assert len(warnings) == 4


def test_all_damaged_is_refused_and_stays_refused(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "manifest.json").unlink()
    for _ in range(2):
        with CheckpointStore(tmp_path, keep=2, warn=lambda _: None) as store, pytest.raises(UserError, match="every"):
            store.latest()


def test_a_step_damaged_twice_keeps_both(tmp_path):
    for _ in range(2):
        save_steps(tmp_path, 2)
        flip_a_byte(tmp_path / "2")
        with CheckpointStore(tmp_path, keep=1, warn=lambda _: None) as store, pytest.raises(UserError):
            store.latest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.damaged", "2.damaged-2"]


def test_checkpoint_under_another_steps_name_is_damaged(tmp_path):
    save_steps(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "9")
    warnings: list[str] = []
    assert CheckpointStore(tmp_path, warn=warnings.append).latest().step == 1
    assert "checkpoint of step 1" in warnings[0]


def test_arrays_changed_between_verification_and_load_are_noticed(tmp_path):
    save_steps(tmp_path, 1, 2)
    store = CheckpointStore(tmp_path)
    assert store.latest().step == 2
    shutil.rmtree(tmp_path / "2" / "arrays")
    shutil.copytree(tmp_path / "1" / "arrays", tmp_path / "2" / "arrays")
    with pytest.raises(DamagedCheckpointError, match="other values"):
        store.load(2, make_state(), make_iterator())
    with pytest.raises(DamagedCheckpointError, match="other values"):
        store.read_arrays(2, "step")


def test_manifest_is_read_back_as_written(tmp_path):
    save_steps(tmp_path, 1)
    manifest = read_manifest(tmp_path / "1")
    # The same content in another form is not what was written.
    path = tmp_path / "1" / manifests.MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(DamagedCheckpointError, match="manifest"):
        read_manifest(tmp_path / "1")
    manifests.write_manifest(tmp_path / "1", manifest)
    assert read_manifest(tmp_path / "1") == manifest


# Failing and killed saves


def save_on_full_disk(store: CheckpointStore, size: int) -> None:
    with largest_file(size):
        store.save(2, BIG, make_iterator(), {})
        store.wait()


@pytest.mark.parametrize("size", [100, 2_000, 20_000])
def test_full_disk_is_one_sentence_and_the_last_checkpoint_is_kept(tmp_path, caplog, size):
    save_steps(tmp_path, 1)
    store = CheckpointStore(tmp_path, keep=1)
    with pytest.raises(UserError) as failure:
        save_on_full_disk(store, size)
    sentence = str(failure.value)
    assert all(part in sentence for part in (str(tmp_path), "step 2", "File too large", "step 1 is kept"))
    assert "\n" not in sentence
    assert not caplog.records  # not even a traceback in a log
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert store.latest().step == 1
    store.save(2, BIG, make_iterator(), {})  # as soon as there is room
    assert store.latest().step == 2
    store.close()


def test_failed_save_is_told_at_the_next_one(tmp_path):
    with CheckpointStore(tmp_path, keep=1) as store:
        with largest_file(2_000):
            store.save(1, BIG, make_iterator(), {})
            assert store._saving[1].exception() is not None  # waits for it
        with pytest.raises(UserError, match=r"step 1 .*no earlier checkpoint"):
            store.save(2, make_state(), make_iterator(), {})


def test_failed_save_does_not_hide_the_error_that_ended_the_run(tmp_path):
    def run() -> None:
        with largest_file(2_000), CheckpointStore(tmp_path, keep=1, warn=warnings.append) as store:
            store.save(1, BIG, make_iterator(), {})
            raise ZeroDivisionError

    warnings: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run()
    assert "step 1" in warnings[0]


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        CheckpointStore(tmp_path / "file", keep=1)
    with pytest.raises(UserError, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "checkpoints", keep=1)
    assert CheckpointStore(tmp_path / "nothing").latest() is None
    store = CheckpointStore(tmp_path / "gone", keep=1)
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("")
    with pytest.raises(UserError, match=r"step 1 .*Not a directory"):
        store.save(1, make_state(), make_iterator(), {})


KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
folder, kill_at = os.path.realpath(sys.argv[1]), int(sys.argv[2])
import grain, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from melodjinn_jax.training.checkpoint import CheckpointStore
mesh = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec("x"))
state = lambda step: {"kernel": jax.device_put(np.full((8, 4), step, np.float32), mesh)}
iterator = iter(grain.MapDataset.range(100).to_iter_dataset())
store = CheckpointStore(Path(folder), keep=1)
store.save(1, state(1), iterator, {})
store.wait()
count = 0
def at_each_file_operation(event, arguments):
    global count
    if any(isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(folder) for a in arguments):
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(at_each_file_operation)
store.save(2, state(2), iterator, {})
store.close()
print(count)
"""


def run_killed_save(folder: Path, kill_at: int) -> subprocess.CompletedProcess:
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", KILLED_SAVE, str(folder), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_killed_save_leaves_a_whole_checkpoint(tmp_path):
    """Also: what four devices saved, one device loads, with the same digests."""
    whole = run_killed_save(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    operations = int(whole.stdout)
    target = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    loaded = CheckpointStore(tmp_path / "whole").load(2, target, make_iterator())
    assert_same(loaded, {"kernel": jnp.full((8, 4), 2.0)})
    for kill_at in [*random.Random(0).sample(range(1, operations - 5), 2), operations - 3]:
        folder = tmp_path / str(kill_at)
        assert run_killed_save(folder, kill_at).returncode == -9
        warnings: list[str] = []
        with CheckpointStore(folder, keep=1, warn=warnings.append) as store:
            step = store.latest().step
            assert_same(store.load(step, target, make_iterator()), {"kernel": jnp.full((8, 4), float(step))})
            assert not [path for path in folder.iterdir() if path.name not in ("1", "2")]
            store.save(3, make_state(), make_iterator(), {})
        assert store.steps() == [3]
        assert warnings == []
