"""Labelled images for training teachers and for evaluation; distillation itself trains on none.

A source is a small module with a `load(request)`; `load` below selects it by name and checks the data.
"""

import dataclasses
from collections.abc import Sequence

from cudfkd_jax.data import archive, digits, folder, npz, tfds
from cudfkd_jax.data.base import (
    CLASS_ORDERS,
    Dataset,
    Loader,
    Request,
    Split,
    absent_classes,
    check_image_shape,
    check_intensities,
    check_num_classes,
    digest,
    one_line,
    printable,
)
from cudfkd_jax.data.folder import survey
from cudfkd_jax.data.images import mean_and_std, resize_images
from cudfkd_jax.runtime.errors import UserError, choose

__all__ = ["CLASS_ORDERS", "SOURCES", "Dataset", "Split", "digest", "load", "mean_and_std", "survey"]

SOURCES: dict[str, Loader] = {
    "digits": digits.load,
    "tfds": tfds.load,
    "archive": archive.load,
    "folder": folder.load,
    "npz": npz.load,
}


def load(
    source: str,
    *,
    name: str,
    directory: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    splits: Sequence[str],
    class_order: str = "auto",
    resize: bool = False,
) -> Dataset:
    """Reads the requested splits, and no others, from a source.

    Args:
      source: a key of SOURCES.
      name: the data set's name, such as 'cifar10'; selects it within 'tfds' and 'archive'.
      directory: the location of the data (a file for 'npz'); '' for 'digits', or for TFDS's default.
      image_shape: the required (H, W, C) of the images; 'digits' are resized to it.
      num_classes: the required number of classes.
      splits: 'train' and/or 'test'.
      class_order: one of CLASS_ORDERS, for 'folder': the order of the class folders, which numbers the labels.
        "auto" takes the order as text and asks for a choice where the order by numbers in the names differs.
      resize: whether images of other sizes are brought to image_shape; see `images.fit`.

    Raises:
      UserError: the source is unknown, files are missing, damaged or hostile, or the data do not match image_shape
        or num_classes.
    """
    choose("data.source", source, tuple(SOURCES))
    request = Request(source, name, directory, image_shape, num_classes, tuple(splits), class_order, resize)
    where = directory or name
    try:
        dataset = SOURCES[source](request)
    except OSError as error:
        raise UserError(f"cannot read the {source} data in {where}: {one_line(error)}") from error
    check_num_classes(dataset.num_classes, request, where)
    if resize:
        for split in dataset.splits.values():
            check_image_shape((*image_shape[:2], split.images.shape[-1]), request, where)
        resized = {
            name: split._replace(images=resize_images(split.images, image_shape))
            for name, split in dataset.splits.items()
        }
        dataset = dataclasses.replace(dataset, image_shape=image_shape, splits=resized)
    notes = dataset.notes
    for name, split in dataset.splits.items():
        check_image_shape(split.images.shape[1:], request, where)
        check_intensities(split, f"{where} ({name})")
        if absent := absent_classes(split, num_classes):
            text = f"data: {absent} of {num_classes} classes have no image in {where} ({name})"
            notes += (printable(text),)
    return dataclasses.replace(dataset, notes=notes)
