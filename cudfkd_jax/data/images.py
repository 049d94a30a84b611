"""Parallel decoding of images to one array."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from cudfkd_jax.data.base import one_line
from cudfkd_jax.runtime.errors import UserError

_FORMATS = ("JPEG", "PNG")
_BLOCK = 256  # images per task; smaller blocks make the threads contend for the GIL
_MODES = {1: "L", 3: "RGB"}


def decode_images(
    count: int, open_image: Callable[[int], tuple[str, str | BinaryIO]], image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Decodes JPEG and PNG images with Pillow and converts them to grey or RGB by the number of channels.

    Args:
      count: number of images N.
      open_image: maps 0..N-1 to the image's name for messages and its path or open binary file; must be
        thread-safe.
      image_shape: (H, W, C), C 1 or 3.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      UserError: an image cannot be decoded or has another size; the size is checked before its pixels are decoded,
        so an image bomb is harmless.
    """
    from PIL import Image

    height, width, channels = image_shape
    if channels not in _MODES:
        raise UserError(f"data.image_shape {image_shape} asks for {channels} channels: images have 1 or 3")
    images = np.empty((count, *image_shape), np.uint8)

    def decode(index: int) -> None:
        name, file = open_image(index)
        try:
            with Image.open(file, formats=_FORMATS) as image:
                if image.size != (width, height):
                    raise UserError(
                        f"the image {name} has {image.size[0]}x{image.size[1]} pixels (width x height), but "
                        f"data.image_shape is {image_shape}: resize it, or set --config.data.image_shape"
                    )
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"the image {name} has more than 8 bits a channel: save it with 8")
                images[index] = np.asarray(image.convert(_MODES[channels])).reshape(image_shape)
        except UserError:
            raise
        # Pillow's decoders raise errors of many types on damaged files.
        except Exception as error:
            raise UserError(f"cannot read the image {name}: {one_line(error)}; replace or remove it") from error

    def decode_block(start: int) -> None:
        for index in range(start, min(start + _BLOCK, count)):
            decode(index)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for _ in pool.map(decode_block, range(0, count, _BLOCK)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
