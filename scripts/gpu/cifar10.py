"""CIFAR-10 from an archive of JPEGs, decoded on all cores."""

import concurrent.futures
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

JPEG = "cifar10_jpeg.npz"


def unpack(jpegs: Path, target: Path, *, most: int | None = None) -> None:
    """Writes an `.npz` for `data.source=npz`.

    Args:
        jpegs: contains, for "train" and "test", `<split>_bytes` (uint8, the concatenated files),
            `<split>_lengths` and `<split>_labels`.
        target: the file to write, atomically.
        most: images per split; None: all.
    """
    arrays: dict[str, Any] = {}
    with np.load(jpegs, allow_pickle=False) as archive, concurrent.futures.ProcessPoolExecutor() as pool:
        for split in ("train", "test"):
            lengths, data = archive[f"{split}_lengths"], archive[f"{split}_bytes"].tobytes()
            ends = np.cumsum(lengths)
            chosen = slice(None, None, max(len(lengths) // most, 1) if most else 1)  # spread over all classes
            files = [data[end - length : end] for end, length in zip(ends[chosen], lengths[chosen], strict=True)]
            parts = [files[i :: os.cpu_count() or 1] for i in range(os.cpu_count() or 1)]
            images = np.empty((len(files), 32, 32, 3), np.uint8)
            for i, decoded in enumerate(pool.map(_decode, parts)):
                images[i :: len(parts)] = decoded
            arrays |= {f"x_{split}": images, f"y_{split}": archive[f"{split}_labels"][chosen]}
    new = target.with_suffix(".new")
    with new.open("wb") as file:
        np.savez(file, **arrays)
    new.replace(target)


def _decode(files: Sequence[bytes]) -> np.ndarray:
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return np.stack(images) if images else np.empty((0, 32, 32, 3), np.uint8)
