"""The request and result types of data sources, and their shared checks."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cudfkd_jax.runtime.errors import UserError


class Split(NamedTuple):
    """Labelled images.

    Attributes:
      images: uint8 [N, H, W, C], intensities 0..255.
      labels: int32 [N], in [0, num_classes).
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The requested splits and their common properties.

    Attributes:
      num_classes: number of classes.
      classes: class names in label order; empty if the source has none.
      image_shape: (H, W, C) of every image.
      splits: the requested ones of 'train' and 'test'.
    """

    num_classes: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a source; the fields are the arguments of `cudfkd_jax.data.load`."""

    source: str
    name: str
    directory: str
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: tuple[str, ...]

    def path(self) -> Path:
        """Returns `directory` as a path.

        Raises:
          UserError: `directory` is empty or does not exist.
        """
        if not self.directory:
            raise UserError(f"data.source={self.source} needs a place to read: set --config.data.dir=PATH")
        path = Path(self.directory).expanduser()
        if not path.exists():
            raise UserError(f"{path} does not exist: set --config.data.dir to where the data lie")
        return path


Loader = Callable[[Request], Dataset]


def one_line(error: Exception) -> str:
    """Returns a library exception's text on one line, or its type if the text is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def check_num_classes(found: int, request: Request, where: object) -> None:
    """Raises UserError unless the source has the configured number of classes."""
    if found != request.num_classes:
        raise UserError(
            f"{where} has {found} classes, but data.num_classes is {request.num_classes}: "
            f"set --config.data.num_classes={found} or choose other data"
        )


def check_image_shape(found: Sequence[int | None], request: Request, where: object) -> None:
    """Raises UserError unless the images have the configured (height, width, channels)."""
    if tuple(found) != request.image_shape:
        raise UserError(
            f"the images of {where} have shape {tuple(found)}, "
            f"but data.image_shape is {request.image_shape}: "
            f"set --config.data.image_shape='{tuple(found)}' or choose other data"
        )


def make_split(images: np.ndarray, labels: np.ndarray, num_classes: int, where: object) -> Split:
    """Checks arrays read from a file and returns them as a split.

    Args:
      images: expected to be uint8 [N, H, W, C] with N > 0.
      labels: expected to be integers [N] in [0, num_classes), of any integer type.
      num_classes: number of classes.
      where: the file or folder, for the error message.

    Raises:
      UserError: the arrays are anything else.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise UserError(
            f"{where}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, C] with N > 0"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [{len(images)}]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{where}: labels run from {low} to {high}, outside 0..{num_classes - 1}: "
            "fix the file or set --config.data.num_classes"
        )
    return Split(images, labels.astype(np.int32))
