"""Small files: atomic writes, JSON that may be damaged, and what lies in the place of a file."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from cudfkd_jax.runtime.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside `path`, syncs it to disk, and renames it into place.

    Raises:
        OSError: writing fails; `path` is unchanged and no other file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:  # on a full disk it names no file
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON with `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_object(path: Path, remedy: str, key: str = "") -> dict[str, Any]:
    """Reads a JSON object, or the object at its `key`.

    Args:
        path: the file.
        remedy: ends the error message: what is suspected, and what to do.
        key: "" for the whole file.

    Raises:
        UserError: the file is missing or damaged, or lacks the key.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return dict(held[key] if key else held)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged{remedy}") from error


def check_is_itself(path: Path) -> None:
    """Rejects what often lies in the place of a file that was to be downloaded.

    Raises:
        UserError: the file cannot be read, is a pointer of Git LFS or an HTML page.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512).lstrip().lower()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull")
    if head.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is an HTML page, not weights; download the file itself")
