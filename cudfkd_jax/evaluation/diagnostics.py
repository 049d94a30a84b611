"""Signs that a run goes nowhere though its numbers are finite, each a sentence with the figure that shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cudfkd_jax.storage.records import Record

_SPREAD = 0.02  # of pixels in [0, 1] over images; those of a working generator have 0.1 and more
_ONE_CLASS = 0.9  # share of the images
_AFTER, _CHANCE = 3, 1.5  # measured epochs, and multiples of chance that are still counted as chance
_ACCURACY = {"acc1": "acc@1", "agree1_synthetic": "synthetic agree@1"}


def of_images(synthetic: Mapping[str, Any]) -> list[str]:
    """Whether the generator has collapsed.

    Args:
        synthetic: what `observations.of_synthetic_images` returned.
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
    """Whether the student has learnt nothing since the start.

    Args:
        history: a record an epoch.
        num_classes: of the data.
    """
    chance = 100 / num_classes
    for key, label in _ACCURACY.items():
        measured = [record[key] for record in history if key in record]
        if len(measured) >= _AFTER and max(measured) < min(_CHANCE * chance, 100):
            return [
                f"the student is at chance: {label} {max(measured):.2f} % at best after {len(history)} epochs, "
                f"{chance:.2f} % is chance"
            ]
    return []
