"""ONNX Runtime Web: the two files of it that the page needs, from a folder or from npm."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from melodjinn_jax.errors import UserError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def runtime_files(folder: str) -> dict[str, bytes]:
    """The runtime's files by name: out of `folder`, or, if it is empty, out of a cache that npm fills once.

    Raises:
      UserError: a file is missing, or npm is, or it cannot fetch the package.
    """
    if folder:
        return _read(Path(folder).expanduser(), f"--runtime {folder}")
    cache = Path("~/.cache/melodjinn").expanduser() / f"{PACKAGE}-{VERSION}"
    if not cache.is_dir():
        _fetch(cache)
    return _read(cache, f"{cache}, which may be deleted,")


def _read(folder: Path, name: str) -> dict[str, bytes]:
    try:
        return {file: (folder / file).read_bytes() for file in FILES}
    except OSError as error:
        wanted = f"{' and '.join(FILES)} of {PACKAGE} {VERSION}"
        raise UserError(f"{name} does not hold {wanted} (they lie in dist/ of the npm package)") from error


def _fetch(cache: Path) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True)
            unpacked = Path(scratch) / "dist"
            unpacked.mkdir()
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                for name in FILES:
                    content = archive.extractfile(f"package/dist/{name}")
                    assert content is not None  # a member that is no file
                    (unpacked / name).write_bytes(content.read())
            # Another export may have been quicker.
            if not cache.is_dir():
                shutil.move(unpacked, cache)
    except FileNotFoundError as error:
        raise UserError(
            f"npm is not installed, and the page needs {PACKAGE}: install npm, or give --runtime FOLDER with "
            f"{' and '.join(FILES)}"
        ) from error
    except (subprocess.CalledProcessError, OSError, KeyError, StopIteration) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise UserError(
            f"npm could not fetch {PACKAGE} {VERSION} ({' '.join(said.split())[:200]}): try again, or give --runtime "
            f"FOLDER with {' and '.join(FILES)}"
        ) from error
