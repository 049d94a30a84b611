"""A folder of images: train/<class>/*, test/<class>/* (or val/), or the unpacked archive of Tiny ImageNet."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, Split, check_num_classes, make_split, printable
from cudfkd_jax.data.cache import cached_images
from cudfkd_jax.data.images import decode_images, header_shape
from cudfkd_jax.runtime.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Of Tiny ImageNet: the file name, class and box of each image of val/images; the boxes of a class of train/; the
# classes in the authors' order.
_ANNOTATIONS, _BOXES, _WNIDS = "val_annotations.txt", "_boxes.txt", "wnids.txt"
_LAYOUT = f"expected train/<class>/*.jpg and test/<class>/*.jpg (or {', '.join(_SUFFIXES[1:])})"
_NAMED = 3  # per kind, of the files that are not read
_LISTED = 12  # class names in a message


class _Image(NamedTuple):
    path: str
    label: int
    size: int  # bytes
    mtime_ns: int


class Survey(NamedTuple):
    """The number of classes, and (H, W, C) of the images, C 1 if all are grey."""

    num_classes: int
    image_shape: tuple[int, int, int]


class _Unread:
    """What a folder holds besides the images that are read."""

    def __init__(self, root: Path):
        self._root = root
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, path: str) -> None:
        """Notes a file or folder of a kind, such as "nested folders"."""
        self._found.setdefault(kind, []).append(path)

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {self._named(paths)}" for kind, paths in self._found.items())

    def _named(self, paths: Sequence[str]) -> str:
        names = [printable(os.path.relpath(path, self._root)) for path in paths[:_NAMED]]
        return f"{len(paths)} ({', '.join([*names, '...'][: len(paths)])})"


def load(request: Request) -> Dataset:
    """Reads images; the classes are the names of the class folders, in the order that `request.class_order` names.

    The labels follow the folders of train/, of which only the names are read if the training split is not
    requested. Decoded images are cached in the user's cache directory, never in the folder. What the folders hold
    besides images is counted in a note; hidden files are not.

    Raises:
      UserError: there are no images or fewer than two classes, class folders differ between the splits, their
        order is ambiguous, or an image cannot be read or does not match request.image_shape.
    """
    root = request.path().resolve()
    classes = _class_names(root)
    check_num_classes(len(classes), request, root)
    ordered = _in_order(classes, request.class_order, root)
    unread = _Unread(root)
    splits = {split: _load_split(request, root, split, ordered, unread) for split in request.splits}
    notes = []
    if len({tuple(classes), tuple(_in_natural_order(classes)), tuple(ordered)}) > 1:
        notes.append(f"data: classes in the order {request.class_order}: {_listed(ordered)}")
    if text := str(unread):
        notes.append(f"data: not read in {printable(str(root))}: {text}")
    return Dataset(len(ordered), tuple(ordered), request.image_shape, splits, tuple(notes))


def survey(directory: str, *, sizes: bool = True) -> Survey:
    """Finds what a folder tells without decoding: its class folders, and the headers of one image of each.

    Args:
      directory: as for `load`; of train/ and test/ the first that is there.
      sizes: whether the images' sizes matter; if not, the shape is that of any of them.

    Raises:
      UserError: there are no images or fewer than two classes, or the images differ in size.
    """
    root = Request("folder", "", directory, (0, 0, 0), 0, ()).path().resolve()
    classes = _class_names(root)
    files = _list(_split_folder(root, "train" if (root / "train").is_dir() else "test"), classes, _Unread(root))
    firsts = {file.label: file.path for file in reversed(files)}
    shapes = {path: header_shape(path) for path in firsts.values()}
    height, width = next(iter(shapes.values()))[:2]
    for path, shape in shapes.items():
        if sizes and shape[:2] != (height, width):
            raise UserError(
                f"the images of {root} have several sizes, such as {width}x{height} and {shape[1]}x{shape[0]} "
                f"pixels ({path}); expected one. Set --config.data.resize=true and "
                "--config.data.image_shape='(224, 224, 3)', or what suits them"
            )
    return Survey(len(classes), (height, width, max(shape[2] for shape in shapes.values())))


def _in_order(classes: list[str], order: str, root: Path) -> list[str]:
    """Returns classes, given in the order of text, in another order."""
    natural = _in_natural_order(classes)
    if order == "auto" and natural != classes:
        raise UserError(
            f"the class folders of {root} have one order as text ({_listed(classes)}) and another as numbers "
            f"({_listed(natural)}); set --config.data.class_order=text or natural, whichever the labels follow"
        )
    if order == "wnids":
        try:
            listed = (root / _WNIDS).read_text(errors="replace").split()
        except FileNotFoundError:
            raise UserError(
                f"data.class_order=wnids, but {root} has no {_WNIDS}; set --config.data.class_order to text or "
                "natural"
            ) from None
        if sorted(listed) != classes:
            differing = sorted(set(listed) ^ set(classes))[:5]
            raise UserError(
                f"data.class_order=wnids, but {root / _WNIDS} does not list every class folder once "
                f"({_listed(differing) or 'it repeats some'}); set --config.data.class_order to text or natural"
            )
        return listed
    return natural if order == "natural" else classes


def _in_natural_order(names: Sequence[str]) -> list[str]:
    """Sorts names with the numbers in them as numbers: 2 before 10."""

    def key(name: str) -> tuple[list[tuple[int, str]], str]:
        # Texts and numbers alternate. Digits without leading zeros compare by their number, then as text.
        parts = re.split("([0-9]+)", name)
        digits = [part.lstrip("0") if i % 2 else part for i, part in enumerate(parts)]
        return [(len(part) if i % 2 else 0, part) for i, part in enumerate(digits)], name

    return sorted(names, key=key)


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= _LISTED else [*names[: _LISTED - 2], "...", names[-1]]
    return printable(", ".join(shown))


def _load_split(request: Request, root: Path, split: str, classes: list[str], unread: _Unread) -> Split:
    folder = _split_folder(root, split)
    files = _list(folder, classes, unread)
    height, width, channels = request.image_shape
    identity = f"{folder}\0{channels}" + f"\0{height}×{width}" * request.resize
    version = hashlib.sha256()
    for file in files:
        version.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\n".encode(errors="surrogateescape"))
    images = cached_images(
        identity,
        version.hexdigest(),
        (len(files), *request.image_shape),
        lambda: decode_images(
            len(files), lambda i: (files[i].path, files[i].path), request.image_shape, resize=request.resize
        ),
    )
    return make_split(images, np.array([file.label for file in files]), len(classes), folder)


def _list(folder: Path, classes: list[str], unread: _Unread) -> list[_Image]:
    lister = _list_annotated if _is_annotated(folder) else _list_by_class
    files = list(lister(folder, classes, unread))
    if not files:
        raise UserError(f"no images in {folder}: {_LAYOUT}")
    return files


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
    """Returns all classes, sorted as text, from folders or Tiny ImageNet's lists, without opening an image.

    Raises:
      UserError: there are fewer than two.
    """
    classes = _listed_classes(root)
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class folders, two at least are needed: {_LAYOUT}")
    return classes


def _listed_classes(root: Path) -> list[str]:
    if (root / "train").is_dir():
        return _subfolders(root / "train")
    folder = _split_folder(root, "test")
    if not _is_annotated(folder):
        return _subfolders(folder)
    if (root / _WNIDS).is_file():
        return sorted((root / _WNIDS).read_text(errors="replace").split())
    return sorted({name for _, name in _annotations(folder)})


def _list_by_class(folder: Path, classes: list[str], unread: _Unread) -> Iterator[_Image]:
    """Yields the images of <class>/ or <class>/images/, by class and name."""
    differing = sorted(set(classes) ^ set(_subfolders(folder)))
    if differing:
        raise UserError(
            f"the class folders of {folder} differ from the classes {', '.join(classes[:3])}, ... of "
            f"{folder.parent}: {', '.join(differing[:5])} in one alone; all splits need the same folders"
        )
    for entry in _entries(folder):
        if not entry.is_dir():
            unread.add("files beside the class folders", entry.path)
    for label, name in enumerate(classes):
        outer, inner = folder / name, folder / name / "images"
        if inner.is_dir():
            found = _images(inner, unread)
            for entry in _images(outer, unread, known=("images", f"{name}{_BOXES}")):
                unread.add("images beside a folder images/", entry.path)
        else:
            found = _images(outer, unread)
        if not found:
            raise UserError(f"no images in {outer}: {'; '.join(filter(None, [_LAYOUT, f'{unread}']))}")
        for entry in found:
            yield _image(entry, label)


def _list_annotated(folder: Path, classes: list[str], unread: _Unread) -> Iterator[_Image]:
    """Yields the images of Tiny ImageNet's val/images, in the order of its annotations."""
    # Looking up names in a listing keeps '..' or '/' from escaping the folder.
    entries = {entry.name: entry for entry in _images(folder / "images", unread)}
    labels = {name: label for label, name in enumerate(classes)}
    labelled = set()
    for file_name, name in _annotations(folder):
        if file_name not in entries:
            raise UserError(f"{folder / _ANNOTATIONS} names {file_name!r}, which is not in {folder / 'images'}")
        if name not in labels:
            raise UserError(f"{folder / _ANNOTATIONS} has the class {name!r} of {file_name}, unknown to train/")
        labelled.add(file_name)
        yield _image(entries[file_name], labels[name])
    for entry in entries.values():
        if entry.name not in labelled:
            unread.add(f"images without a line in {_ANNOTATIONS}", entry.path)


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


def _images(folder: Path, unread: _Unread, known: Sequence[str] = ()) -> list[os.DirEntry]:
    """Returns the images of a folder by name; notes everything else, except `known` names, as unread."""
    found = []
    for entry in _entries(folder):
        if entry.name in known:
            continue
        if entry.is_dir():
            unread.add("nested folders", entry.path)
        elif entry.name.lower().endswith(_SUFFIXES):
            found.append(entry)
        else:
            unread.add("files of other types", entry.path)
    return found


def _entries(folder: Path) -> list[os.DirEntry]:
    """Returns the entries of a folder by name, without the hidden ones that macOS and editors leave."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]
