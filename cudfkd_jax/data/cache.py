"""Decoded images kept in the user's cache directory."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cached_images(
    identity: str, version: str, shape: tuple[int, ...], build: Callable[[], np.ndarray]
) -> np.ndarray:
    """Reads images from the cache, or builds and keeps them.

    Each identity has one file, so that data that change replace their old images instead of piling up.
    A missing, stale or damaged file is built anew; a cache that cannot be written is no error.

    Args:
      identity: says which images these are, such as the folder and split they come from.
      version: changes whenever they do, such as a digest of the files' names, sizes and times.
      shape: the shape of the images.
      build: makes them, uint8 of that shape.

    Returns:
      uint8 array of that shape.
    """
    try:
        path = (
            _cache_directory()
            / f"{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"
        )
    except RuntimeError:  # no home directory
        return build()
    images = _read(path, version, shape)
    if images is None:
        images = build()
        _write(path, version, images)
    return images


def _cache_directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path("~/.cache").expanduser()) / "cudfkd_jax" / "images"


def _read(path: Path, version: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images kept under that version, or None."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["version"]) != version:
                return None
            images = archive["images"]  # the zip's checksum finds flipped bits
    # A damaged zip raises errors of many types, and the answer to all is the same.
    except Exception:
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _write(path: Path, version: str, images: np.ndarray) -> None:
    """Writes under a temporary name first: a reader sees the old file or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            np.savez(temporary, version=np.array(version), images=images)
            temporary.replace(path)
    except OSError:
        pass  # a full or read-only disk costs the next run its time, no more
