"""Damage a real checkpoint in every way and count what goes undetected: `python benchmarks/corruption.py`.

Every file of a small checkpoint has bytes flipped (each byte of small files, many positions of large ones), is cut
short, extended and removed, and files are added. Prints a table; the exit status is 1 if anything went undetected.
"""

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grain
import jax
import jax.numpy as jnp

from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.manifest import DamagedCheckpointError, verify

SMALL_FILE = 4096
"""Files of at most this many bytes have every byte flipped."""


def write_checkpoint(folder: Path) -> Path:
    """Save a small state under `folder`; returns the folder of its checkpoint."""
    values = jax.random.normal(jax.random.key(0), (3, 64, 64))
    arrays = {"lam": {"kernel": values[0]}, "dynamics": {"kernel": values[1], "half": values[2].astype(jnp.bfloat16)}}
    iterator = iter(grain.MapDataset.range(100).seed(0).shuffle().batch(4).to_iter_dataset())
    with CheckpointStore(folder, keep=1) as store:
        store.save(1, arrays | {"rng": jax.random.key(1)}, iterator, {"phase": "frozen"})
    return folder / "1"


@contextmanager
def _restored(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    try:
        yield content
    finally:
        path.write_bytes(content)


def _flip(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def is_detected(checkpoint: Path) -> bool:
    """Whether verification refuses the checkpoint."""
    try:
        verify(checkpoint)
    except DamagedCheckpointError:
        return True
    return False


def damage_file(checkpoint: Path, path: Path, flips: int, small: int = SMALL_FILE) -> Counter[tuple[str, bool]]:
    """Damage one file in every way, restoring it each time; counts (kind of damage, detected)."""
    counts: Counter[tuple[str, bool]] = Counter()

    def attempt(kind: str, damage: Callable[[], object]) -> None:
        damage()
        counts[kind, is_detected(checkpoint)] += 1

    with _restored(path) as content:
        size = len(content)
        rng = random.Random(path.name)
        positions = {i * size // flips for i in range(flips)} | {rng.randrange(size) for _ in range(flips) if size}
        for position in range(size) if size <= small else sorted(positions):
            mask = 1 << rng.randrange(8)
            attempt("flip a bit", lambda at=position, mask=mask: _flip(path, at, mask))  # type: ignore[misc]
            _flip(path, position, mask)
        for length in {0, size // 2, size - 1} - {size, -1}:
            attempt("cut short", lambda length=length: path.write_bytes(content[:length]))  # type: ignore[misc]
        attempt("extend", lambda: path.write_bytes(content + b"\0"))
        attempt("remove", path.unlink)
    return counts


def add_file(checkpoint: Path, folder: Path) -> Counter[tuple[str, bool]]:
    """Put an unknown file into a folder of the checkpoint."""
    extra = folder / "extra"
    extra.write_bytes(b"")
    detected = is_detected(checkpoint)
    extra.unlink()
    return Counter({("add a file", detected): 1})


def main() -> int:
    undetected = 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder))
        print(f"{'damage':12} {'tried':>6} {'undetected':>10}  file")
        for path in sorted([checkpoint, *checkpoint.rglob("*")]):
            counts = add_file(checkpoint, path) if path.is_dir() else damage_file(checkpoint, path, flips=64)
            for kind in sorted({kind for kind, _ in counts}):
                undetected += counts[kind, False]
                tried = counts[kind, False] + counts[kind, True]
                print(f"{kind:12} {tried:6} {counts[kind, False]:10}  {path.relative_to(checkpoint)}")
        assert not is_detected(checkpoint), "the checkpoint was not restored"
    print(f"undetected: {undetected}")
    return 1 if undetected else 0


if __name__ == "__main__":
    sys.exit(main())
