"""An .npz file with images and labels of both splits; object arrays are refused and nothing is unpickled."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, make_split, one_line, printable
from cudfkd_jax.runtime.errors import UserError

# Names of the images and labels of a split: Keras's, and those of MedMNIST (J. Yang et al., "MedMNIST v2", 2023).
_NAMES = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_MAX_DEFLATE_RATIO = 1032  # deflate packs at most 258 bytes into 2 bits


def load(request: Request) -> Dataset:
    """Reads images, uint8 [N, H, W, C] or [N, H, W], and labels, integers [N] or [N, 1].

    The arrays are x_<split> and y_<split>, or <split>_images and <split>_labels, as in MedMNIST's files.
    `request.directory` is the file, or a folder that contains `<name>.npz`. The file has no class names.

    Raises:
      UserError: the file is not an .npz file, keys are missing, or arrays have other dtypes or shapes.
    """
    path = request.path()
    if path.is_dir():
        path = path / f"{request.name}.npz"
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an .npz file: set --config.data.dir to one with x_train, y_train, ...")
    splits = {}
    with _open(path) as archive:
        for split in request.splits:
            images, labels = (_read(archive, path, name) for name in _names(archive, split))
            if images.ndim == 3:
                images = images[..., None]
            splits[split] = make_split(images, labels, request.num_classes, f"{path} ({split})")
        unread = _unread(archive)
    shapes = [split.images.shape[1:] for split in splits.values()]
    notes = (printable(f"data: arrays not read in {path}: {', '.join(unread)}"),) if unread else ()
    return Dataset(request.num_classes, (), shapes[0], splits, notes)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged zip directory raises errors of many types
        raise UserError(f"{path} is damaged: {one_line(error)}; save the file again") from error


def _names(archive: zipfile.ZipFile, split: str) -> tuple[str, str]:
    """Returns the names of a split's images and labels."""
    pairs = [(images.format(split), labels.format(split)) for images, labels in _NAMES]
    members = archive.namelist()
    return next((pair for pair in pairs if f"{pair[0]}.npy" in members), pairs[0])


def _unread(archive: zipfile.ZipFile) -> list[str]:
    """Returns the names of the arrays that belong to no split."""
    known = {name for split in ("train", "test") for name in _names(archive, split)}
    return sorted({name.removesuffix(".npy") for name in archive.namelist()} - known)


def _read(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """Reads one array after checking its declared size against the actual data."""
    try:
        member = archive.getinfo(f"{key}.npy")
    except KeyError:
        found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
        raise UserError(
            f"{path} has no array {key!r}, only: {found or 'nothing'}; "
            "it needs x_train, y_train, x_test and y_test, or train_images, train_labels, test_images and "
            "test_labels"
        ) from None
    try:
        with archive.open(member) as file:
            shape, dtype = _read_header(file)
            header = file.tell()
            if dtype.hasobject:
                raise UserError(f"{path}: {key} holds Python objects, which are not read: save numbers")
            declared = header + math.prod(shape) * dtype.itemsize
            possible = min(member.file_size, _MAX_DEFLATE_RATIO * path.stat().st_size)
            if declared > possible:
                raise UserError(
                    f"{path}: {key} declares {dtype} {list(shape)}, more than the file can hold: "
                    "it is damaged, save it again"
                )
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except UserError:
        raise
    # zipfile and NumPy raise errors of many types on damaged files.
    except Exception as error:
        raise UserError(f"{path}: cannot read {key}: {one_line(error)}; save the file again") from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and dtype that an .npy stream declares and leaves the stream after the header."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype
