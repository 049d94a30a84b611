"""Pictures of synthetic images."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from cudfkd_jax.storage.files import write_bytes

GREY = 128  # of 255, between images
_GAP, _WIDTH = 2, 640


def save_grid(path: Path, images: np.ndarray, *, columns: int = 0) -> None:
    """Writes images `[N, H, W, C]` in [0, 1] as one PNG, enlarged to a width of about 640 pixels.

    The grid has `columns` columns; 0 makes it square.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), GREY, dtype=np.uint8
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
