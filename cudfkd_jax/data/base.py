"""What every data source takes and returns, and the checks they share."""

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
    """The splits that were asked for, and what they share.

    Attributes:
      num_classes: number of classes the labels may take.
      classes: class names in label order; empty where the source has none.
      image_shape: (H, W, C) of every image.
      splits: 'train' and/or 'test', no other and none that was not asked for.
    """

    num_classes: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a source; the fields are the arguments of `cudfkd_jax.data.load`."""

    source: str
    name: str
    directory: str
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: tuple[str, ...]

    def path(self) -> Path:
        """The place `directory` names.

        Raises:
          UserError: `directory` is empty or names nothing on disk.
        """
        if not self.directory:
            raise UserError(f"data.source={self.source} needs a place to read: set --config.data.dir=PATH")
        path = Path(self.directory).expanduser()
        if not path.exists():
            raise UserError(f"{path} does not exist: set --config.data.dir to where the data lie")
        return path


Loader = Callable[[Request], Dataset]


def one_line(error: Exception) -> str:
    """The text of an exception from a library without its line breaks, or its type where it has none."""
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
    """Checks arrays that came from a file.

    Args:
      images: to be uint8 [N, H, W, C] with N > 0.
      labels: to be integers [N] in [0, num_classes), of any integer type.
      num_classes: number of classes.
      where: named in the message, the file or folder.

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
