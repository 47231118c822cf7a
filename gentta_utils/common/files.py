"""Writing so that a reader never sees half a file, and a full disk loses nothing."""

import hashlib
import json
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

# what readers raise of a file that is empty, cut, or something else
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)
DAMAGE += (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then move the result to `path` in one step.

    Raises OSError with a sentence that says what to do, if the disk is full or the folder cannot be written; an older
    file at `path` is then untouched."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _to_disk(temporary)  # or after a power cut the new name could stand for an empty file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        raise OSError(
            f"could not write {path} ({getattr(error, 'strerror', None) or error}): free some space or choose another "
            "folder; what was there before is unchanged"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: object) -> None:
    """Write `content` as readable JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, fix: str):
    """What a JSON file holds.

    Args:
        fix: what to do about a missing or damaged one, for the sentence of the error.

    Raises FileNotFoundError or ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}: {fix}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({how_damaged(path, error)}): {fix}") from error


def how_damaged(path: Path, error: Exception) -> str:
    """In words what is wrong with a file whose reader raised this error: many say "unsafe" of an empty one."""
    try:
        with open(path, "rb") as file:
            begun = file.read(64)
    except OSError as cannot:
        return cannot.strerror or "it cannot be read"
    if not begun:
        return "it is empty"
    if begun.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself"
    return str(error).partition("\n")[0] or type(error).__name__


def read_tensors(path: Path) -> dict | None:
    """Tensors of a safetensors file in a cache; None where it is missing or damaged, so that it is made again."""
    from safetensors.torch import load_file  # late: loads torch, which the runner of notebooks can do without

    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FIX_MODEL = "run `git checkout -- data/models`, or make it again with `python -m gentta_utils train`"


def check_file(path: Path, checksum: str | None = None, fix: str = FIX_MODEL) -> None:
    """See that a model's file is there, whole (if it holds tensors) and has this checksum.

    Raises FileNotFoundError or ValueError with a sentence that says what is wrong and ends with `fix`, what to do."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: {fix}" if _holds_tensors(path) else f"no file {path}: {fix}")
    if _holds_tensors(path):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({how_damaged(path, error)}): {fix}") from error
    if checksum is not None and sha256(path) != checksum:
        raise ValueError(f"{path} does not have the checksum that data/models/checksums.json states: {fix}")


def _holds_tensors(path: Path) -> bool:
    return Path(path).suffix == ".safetensors"
