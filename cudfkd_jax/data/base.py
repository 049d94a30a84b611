"""The request and result types of data sources, and their shared checks."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cudfkd_jax.runtime.errors import UserError

CLASS_ORDERS = ("auto", "natural", "text", "wnids")  # as data.class_order
_DIGESTED = 64  # images


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
      notes: what the user should know of the reading, one line each.
    """

    num_classes: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a source; the fields are the arguments of `cudfkd_jax.data.load`."""

    source: str
    name: str
    directory: str
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: tuple[str, ...]
    class_order: str = "auto"
    resize: bool = False

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
        remedies = [f"set --config.data.image_shape='{tuple(found)}'"] if None not in found else []
        if tuple(found[2:]) == request.image_shape[2:]:
            remedies.append("set --config.data.resize=true")
        raise UserError(
            f"the images of {where} have shape {tuple(found)}, "
            f"but data.image_shape is {request.image_shape}: "
            f"{', '.join([*remedies, 'or choose other data'])}"
        )


def make_split(images: np.ndarray, labels: np.ndarray, num_classes: int, where: object) -> Split:
    """Checks arrays read from a file and returns them as a split.

    Args:
      images: expected to be uint8 [N, H, W, C] with N > 0.
      labels: expected to be integers [N] or [N, 1] in [0, num_classes), of any integer type.
      num_classes: number of classes.
      where: the file or folder, for the error message.

    Raises:
      UserError: the arrays are anything else.
    """
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise UserError(
            f"{where}: images are {list(images.shape)}, channels first; expected channels last, [N, H, W, C]: "
            "use images.transpose(0, 2, 3, 1)"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise UserError(
            f"{where}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, C] with N > 0"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [{len(images)}]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low == 1 and high == num_classes:
        svhn = ", or take the remainder of 10 where 10 stands for the digit 0, as in SVHN's files"
        raise UserError(
            f"{where}: labels run from 1 to {high}, so they begin at 1; expected 0..{high - 1}: subtract 1"
            f"{svhn if high == 10 else ''}"
        )
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{where}: labels run from {low} to {high}, outside 0..{num_classes - 1}: "
            "fix the file or set --config.data.num_classes"
        )
    return Split(images, labels.astype(np.int32))


def check_intensities(split: Split, where: object) -> None:
    """Raises UserError for uint8 images that were in [0, 1] before they were converted."""
    if split.images.max() <= 1:
        raise UserError(
            f"{where}: no image has an intensity above 1; expected 0..255: multiply images in [0, 1] by 255 "
            "before they are converted to uint8"
        )


def absent_classes(split: Split, num_classes: int) -> int:
    """Returns the number of classes without an image."""
    return num_classes - len(np.unique(split.labels))


def digest(split: Split) -> str:
    """Returns a SHA-256 digest of a split's labels and of up to 64 of its images, evenly spaced."""
    found = hashlib.sha256(f"{split.images.shape}".encode())
    found.update(split.labels.astype("<i4").tobytes())
    for index in np.linspace(0, len(split.images) - 1, min(len(split.images), _DIGESTED)).astype(int):
        found.update(split.images[index].tobytes())
    return found.hexdigest()


def printable(text: str) -> str:
    """Replaces each character that would break or fail in a printed line by a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)
