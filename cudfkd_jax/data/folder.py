"""A folder of images: train/<class>/*, test/<class>/* (or val/), or the unpacked archive of Tiny ImageNet."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, Split, check_num_classes, make_split
from cudfkd_jax.data.cache import cached_images
from cudfkd_jax.data.images import decode_images
from cudfkd_jax.runtime.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png")
_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: file name, class and box of each image of val/images
_LAYOUT = "expected train/<class>/*.jpg and test/<class>/*.jpg (or .jpeg, .png)"


class _Image(NamedTuple):
    path: str
    label: int
    size: int  # bytes
    mtime_ns: int


def load(request: Request) -> Dataset:
    """Reads JPEG and PNG images; the classes are the sorted names of the class folders.

    The labels follow the folders of train/, of which only the names are read if the training split is not
    requested. Decoded images are cached in the user's cache directory, never in the folder.

    Raises:
      UserError: there are no images or fewer than two classes, class folders differ between the splits, or an
        image cannot be read or does not match request.image_shape.
    """
    root = request.path().resolve()
    classes = _class_names(root)
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class folders, two at least are needed: {_LAYOUT}")
    check_num_classes(len(classes), request, root)
    splits = {split: _load_split(request, root, split, classes) for split in request.splits}
    return Dataset(len(classes), tuple(classes), request.image_shape, splits)


def _load_split(request: Request, root: Path, split: str, classes: list[str]) -> Split:
    folder = _split_folder(root, split)
    listing = _list_annotated(folder, classes) if _is_annotated(folder) else _list_by_class(folder, classes)
    files = list(listing)
    if not files:
        raise UserError(f"no images in {folder}: {_LAYOUT}")

    identity = f"{folder}\0{request.image_shape[-1]}"
    version = hashlib.sha256()
    for file in files:
        version.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\n".encode(errors="surrogateescape"))
    images = cached_images(
        identity,
        version.hexdigest(),
        (len(files), *request.image_shape),
        lambda: decode_images(len(files), lambda i: (files[i].path, files[i].path), request.image_shape),
    )
    return make_split(images, np.array([file.label for file in files]), len(classes), folder)


def _split_folder(root: Path, split: str) -> Path:
    """Returns the split's folder; val/ replaces a missing test/ and Tiny ImageNet's, which has no labels."""
    val = root / "val"
    if split == "test" and (_is_annotated(val) or (val.is_dir() and not (root / "test").is_dir())):
        return val
    if not (root / split).is_dir():
        raise UserError(f"no folder {root / split}: {_LAYOUT}")
    return root / split


def _is_annotated(folder: Path) -> bool:
    return (folder / _ANNOTATIONS).is_file()


def _class_names(root: Path) -> list[str]:
    """Returns all classes in label order, from folder names or Tiny ImageNet's lists, without opening an image."""
    if (root / "train").is_dir():
        return _subfolders(root / "train")
    folder = _split_folder(root, "test")
    if not _is_annotated(folder):
        return _subfolders(folder)
    if (root / "wnids.txt").is_file():
        return sorted((root / "wnids.txt").read_text(errors="replace").split())
    return sorted({name for _, name in _annotations(folder)})


def _list_by_class(folder: Path, classes: list[str]) -> Iterator[_Image]:
    """Yields the images of <class>/ or <class>/images/, by class and name."""
    differing = sorted(set(classes) ^ set(_subfolders(folder)))
    if differing:
        raise UserError(
            f"the class folders of {folder} differ from the classes {', '.join(classes[:3])}, ... of "
            f"{folder.parent}: {', '.join(differing[:5])} in one alone; all splits need the same folders"
        )
    for label, name in enumerate(classes):
        inner = folder / name / "images"
        entries = _image_entries(inner if inner.is_dir() else folder / name)
        if not entries:
            raise UserError(f"no images in {folder / name}: {_LAYOUT}")
        for entry in entries:
            yield _image(entry, label)


def _list_annotated(folder: Path, classes: list[str]) -> Iterator[_Image]:
    """Yields the images of Tiny ImageNet's val/images, in the order of its annotations."""
    # Looking up names in a listing keeps '..' or '/' from escaping the folder.
    entries = {entry.name: entry for entry in _image_entries(folder / "images")}
    labels = {name: label for label, name in enumerate(classes)}
    for file_name, name in _annotations(folder):
        if file_name not in entries:
            raise UserError(f"{folder / _ANNOTATIONS} names {file_name!r}, which is not in {folder / 'images'}")
        if name not in labels:
            raise UserError(f"{folder / _ANNOTATIONS} has the class {name!r} of {file_name}, unknown to train/")
        yield _image(entries[file_name], labels[name])


def _annotations(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields pairs of file name and class."""
    for line in (folder / _ANNOTATIONS).read_text(errors="replace").splitlines():
        fields = line.split("\t")
        if len(fields) < 2:
            raise UserError(f"{folder / _ANNOTATIONS}: expected 'file<TAB>class<TAB>...', found {line[:80]!r}")
        yield fields[0], fields[1]


def _image(entry: os.DirEntry, label: int) -> _Image:
    stat = entry.stat()
    return _Image(entry.path, label, stat.st_size, stat.st_mtime_ns)


def _image_entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.lower().endswith(_SUFFIXES)]
    # macOS and editors leave dot files beside the images.
    return sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
