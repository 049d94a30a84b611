"""The official CIFAR archives, unpacked, in the Python or binary version.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009),
https://www.cs.toronto.edu/~kriz/cifar.html. torchvision unpacks to the same folders.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, Split, check_num_classes, make_split, one_line
from cudfkd_jax.data.pickles import load_arrays
from cudfkd_jax.runtime.errors import UserError

_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class _Pickled:
    """The Python version: dictionaries with `data`, uint8 [N, 3072] in 3 planes, and a list of labels."""

    folder: str
    packed: str
    names_file: str
    names_key: str
    labels_key: str
    files: dict[str, tuple[str, ...]]

    def names(self, path: Path) -> list[str]:
        return [str(name) for name in load_arrays(path)[self.names_key]]

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Reads the planes, uint8 [N, 3072], and the labels [N]."""
        content = load_arrays(path)
        return np.asarray(content["data"]), np.asarray(content[self.labels_key])


@dataclasses.dataclass(frozen=True)
class _Binary:
    """The binary version: records of label bytes, of which the last is used, and 3072 pixel bytes."""

    folder: str
    packed: str
    names_file: str
    label_bytes: int
    files: dict[str, tuple[str, ...]]

    def names(self, path: Path) -> list[str]:
        return path.read_text().split()

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Reads the planes, uint8 [N, 3072], and the labels [N]."""
        content = np.fromfile(path, np.uint8).reshape(-1, self.label_bytes + 3072)
        return content[:, self.label_bytes :], content[:, self.label_bytes - 1]


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS: dict[str, tuple[_Pickled | _Binary, ...]] = {
    "cifar10": (
        _Pickled(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            "batches.meta",
            "label_names",
            "labels",
            {"train": _BATCHES, "test": ("test_batch",)},
        ),
        _Binary(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            "batches.meta.txt",
            1,
            {"train": tuple(f"{batch}.bin" for batch in _BATCHES), "test": ("test_batch.bin",)},
        ),
    ),
    "cifar100": (
        _Pickled(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            "meta",
            "fine_label_names",
            "fine_labels",
            {"train": ("train",), "test": ("test",)},
        ),
        _Binary(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            "fine_label_names.txt",
            2,
            {"train": ("train.bin",), "test": ("test.bin",)},
        ),
    ),
}


def load(request: Request) -> Dataset:
    """Reads CIFAR-10 or CIFAR-100 (its 100 fine labels) from the unpacked archive.

    `request.directory` is the archive's folder or its parent.

    Raises:
      UserError: the data set is another one, the folder does not exist, or files are missing, damaged or contain
        more than data.
    """
    if request.name not in _LAYOUTS:
        raise UserError(
            f"data.source=archive reads {' and '.join(_LAYOUTS)}, not {request.name!r}: "
            "use --config.data.source=folder or npz"
        )
    layout, folder = _find(request)
    classes = _guard(layout.names, folder / layout.names_file)
    check_num_classes(len(classes), request, folder)
    splits = {split: _read_split(layout, folder, split, len(classes)) for split in request.splits}
    return Dataset(len(classes), tuple(classes), _SHAPE, splits)


def _find(request: Request) -> tuple[_Pickled | _Binary, Path]:
    root = request.path()
    layouts = _LAYOUTS[request.name]
    for layout in layouts:
        for folder in (root / layout.folder, root):
            if (folder / layout.names_file).is_file():
                return layout, folder
    for layout in layouts:
        for packed in (root / layout.packed, root):
            if packed.is_file() and packed.name == layout.packed:
                raise UserError(
                    f"{packed} is still packed: tar -xzf {packed} -C {packed.parent}, "
                    f"then set --config.data.dir={packed.parent}"
                )
    folders = " or ".join(layout.folder for layout in layouts)
    raise UserError(
        f"no {folders} in {root}: unpack {layouts[0].packed} from https://www.cs.toronto.edu/~kriz/ there"
    )


def _read_split(layout: _Pickled | _Binary, folder: Path, split: str, num_classes: int) -> Split:
    images, labels = [], []
    for name in layout.files[split]:
        planes, part_labels = _guard(layout.read, folder / name)
        if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != 3072:
            raise UserError(
                f"{folder / name}: data are {planes.dtype} {list(planes.shape)}, expected uint8 [N, 3072]"
            )
        part = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        checked = make_split(part, part_labels, num_classes, folder / name)
        images.append(checked.images)
        labels.append(checked.labels)
    return Split(np.concatenate(images), np.concatenate(labels))


def _guard(read: Callable[[Path], Any], path: Path) -> Any:
    """Calls `read(path)` and raises UserError if the file is missing or incomplete."""
    try:
        return read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: unpack the official archive again") from None
    except KeyError as error:
        raise UserError(f"{path} has no entry {error}: fetch the official archive again") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): fetch the official archive again") from error
