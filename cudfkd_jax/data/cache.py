"""A cache of decoded images in the user's cache directory."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cached_images(
    identity: str, version: str, shape: tuple[int, ...], build: Callable[[], np.ndarray]
) -> np.ndarray:
    """Reads images from the cache, or builds and caches them.

    Each identity has one file, so that changed data replace their old images instead of accumulating. A missing,
    stale or damaged file is rebuilt; a failed write is ignored.

    Args:
      identity: identifies the images, for example by their folder and split.
      version: changes with the images, for example a digest of the files' names, sizes and times.
      shape: the shape of the images.
      build: returns the images, uint8 of that shape.

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
    """Returns the images cached under that version, or None."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["version"]) != version:
                return None
            images = archive["images"]  # the zip's checksum detects flipped bits
    # A damaged zip raises errors of many types, all handled alike.
    except Exception:
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _write(path: Path, version: str, images: np.ndarray) -> None:
    """Writes atomically, through a temporary name: a reader sees the old file or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            np.savez(temporary, version=np.array(version), images=images)
            temporary.replace(path)
    except OSError:
        pass  # without a cache file the next run only decodes again
