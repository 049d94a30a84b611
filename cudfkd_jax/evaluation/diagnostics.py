"""Diagnostics of runs that fail with finite metrics; each is a sentence that quotes the number behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cudfkd_jax.storage.records import Record

_SPREAD = 0.02  # standard deviation over images of pixels in [0, 1]; a working generator reaches 0.1 or more
_ONE_CLASS = 0.9  # share of the images
_AFTER = 3  # evaluated epochs
_CHANCE, _MARGIN = 1.5, 5  # what still counts as chance: the lower of a multiple, and of points above it
_ACCURACY = {"acc1": "acc@1", "agree1_synthetic": "synthetic agree@1"}


def of_images(synthetic: Mapping[str, Any]) -> list[str]:
    """Returns signs that the generator has collapsed.

    Args:
        synthetic: the result of `observations.of_synthetic_images`.
    """
    found, spread = [], synthetic.get("spread")
    if spread is not None and spread < _SPREAD:
        found.append(
            f"the synthetic images are all alike: a pixel's standard deviation over them is {spread:.4f} "
            f"(collapsed below {_SPREAD})"
        )
    classes = synthetic["classes"]
    most = classes.index(max(classes))
    share = classes[most] / sum(classes)
    if share > _ONE_CLASS:
        found.append(f"{100 * share:.0f} % of the synthetic images are of class {most} to the teacher")
    return found


def of_student(history: Sequence[Record], num_classes: int) -> list[str]:
    """Returns signs that the student has learnt nothing since the start.

    Args:
        history: one record per epoch.
        num_classes: the number of classes in the data.
    """
    chance = 100 / num_classes
    for key, label in _ACCURACY.items():
        measured = [record[key] for record in history if key in record]
        if len(measured) >= _AFTER and max(measured) < min(_CHANCE * chance, chance + _MARGIN):
            return [
                f"the student is at chance: {label} {max(measured):.2f} % at best after {len(history)} epochs, "
                f"{chance:.2f} % is chance"
            ]
    return []
