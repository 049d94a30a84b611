"""Pictures of synthetic images."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from cudfkd_jax.files import write_bytes

_GAP, _GREY, _WIDTH = 2, 128, 640


def save_grid(path: Path, images: np.ndarray) -> None:
    """Writes images `[N, H, W, C]` in [0, 1] as one PNG, in a square grid enlarged to about 640 pixels."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), _GREY, dtype=np.uint8
    )
    for index, image in enumerate(np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    scale = max(1, _WIDTH // picture.width)
    buffer = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
