"""Parallel decoding of images to one array."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cudfkd_jax.data.base import one_line
from cudfkd_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_OF_PAGES = ("WEBP", "TIFF")  # formats whose further pages would be dropped; a JPEG's are previews of it
_BLOCK = 256  # images per task; smaller blocks make the threads contend for the GIL
_GREY = ("1", "L", "LA", "La")
_MODES = {1: "L", 3: "RGB"}


def decode_images(
    count: int,
    open_image: Callable[[int], tuple[str, str | BinaryIO]],
    image_shape: tuple[int, int, int],
    *,
    resize: bool = False,
) -> np.ndarray:
    """Decodes images with Pillow and converts them to grey or RGB by the number of channels.

    Args:
      count: number of images N.
      open_image: maps 0..N-1 to the image's name for messages and its path or open binary file; must be
        thread-safe.
      image_shape: (H, W, C), C 1 or 3.
      resize: whether images of other sizes are brought to image_shape by `fit`.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      UserError: an image cannot be decoded, has several pages, more than 8 bits per channel, or another size
        without `resize`. The size (with `resize`, Pillow's limit of 89 megapixels) is checked before the pixels
        are decoded, so an image bomb is harmless.
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
                if image.size != (width, height) and not resize:
                    raise UserError(
                        f"the image {name} has {image.size[0]}x{image.size[1]} pixels (width x height), but "
                        f"data.image_shape is {image_shape}: set --config.data.resize=true, or "
                        "--config.data.image_shape"
                    )
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"the image {name} has more than 8 bits a channel: save it with 8")
                if image.format in _OF_PAGES and getattr(image, "is_animated", False):
                    raise UserError(f"the image {name} has several pages or frames: save each by itself")
                pixels = fit(image.convert(_MODES[channels]), height, width)
                images[index] = np.asarray(pixels).reshape(image_shape)
        except UserError:
            raise
        # Pillow's decoders raise errors of many types on damaged files.
        except Exception as error:
            raise UserError(f"cannot read the image {name}: {one_line(error)}; replace or remove it") from error

    def decode_block(start: int) -> None:
        for index in range(start, min(start + _BLOCK, count)):
            decode(index)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", UserWarning)  # of damaged metadata, which is not read
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for _ in pool.map(decode_block, range(0, count, _BLOCK)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def header_shape(path: str) -> tuple[int, int, int]:
    """Reads (H, W, C) from an image's header; C is 1 for grey images, with or without alpha, and otherwise 3.

    Raises:
      UserError: the file is no image.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
            return image.height, image.width, 1 if image.mode in _GREY else 3
    except Exception as error:  # as in `decode_images`
        raise UserError(f"cannot read the image {path}: {one_line(error)}; replace or remove it") from error


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation per channel over all pixels, from exact counts of the intensities.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      Two float64 arrays [C], of the images in [0, 1].
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(block, -1, 0)]
    values, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ values
    return mean, np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))


def fit(image: "PillowImage", height: int, width: int) -> "PillowImage":
    """Scales an image until its shorter side fits and crops the centre; an image of the right size is unchanged.

    The scaling is bilinear and antialiased, as in torchvision's `Resize` and `CenterCrop`. "Shorter" is relative
    to `height` and `width`: the scaled image just covers them.

    Args:
      image: 8 bits per channel, "L" or "RGB".
      height, width: of the result.

    Raises:
      ValueError: the image is so narrow that it would be scaled to more pixels than Pillow's limit.
    """
    from PIL import Image

    if image.size == (width, height):
        return image
    if image.width * height > image.height * width:
        scaled = image.width * height // image.height, height
    else:
        scaled = width, image.height * width // image.width
    if scaled[0] * scaled[1] > (Image.MAX_IMAGE_PIXELS or 0):
        raise ValueError(f"{image.width}x{image.height} pixels are too narrow to be resized")
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    resized = image.resize(scaled, Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + width, top + height))


def resize_images(images: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Brings images uint8 [N, h, w, C] to uint8 [N, H, W, C] by `fit`; C is 1 or 3."""
    from PIL import Image

    height, width, channels = image_shape
    if images.shape[1:3] == (height, width):
        return images
    squeezed = images[..., 0] if channels == 1 else images
    resized = [np.asarray(fit(Image.fromarray(image), height, width)) for image in squeezed]
    return np.stack(resized).reshape(len(images), *image_shape)
