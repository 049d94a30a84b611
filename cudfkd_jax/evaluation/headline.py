"""The result of a data-free run in a few words, from its metrics and the sizes of its networks."""

import math
from collections.abc import Mapping
from typing import Any

_AGREEMENTS = {"agree1": "test images", "agree1_synthetic": "held-out synthetic images"}
_SAME, _SAME_SIZE = 1.05, "as large"  # up to that ratio of parameters
SHARES = ("acc1", *_AGREEMENTS)  # the metrics of a headline


def headline(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what a student is worth beside its teacher, each figure with the numbers behind it.

    Args:
        teacher, student: `parameters`, and metrics under their names in `metrics.jsonl`; figures of missing or
            non-finite ones are left out.

    Returns:
        For example `[("4.0× smaller", "174,778 of 691,386 parameters"), ("99.4 % of the teacher's accuracy",
        "student 99.16 %, teacher 99.72 %, on the test images")]`.
    """
    found = []
    ours, theirs = (_number(net, "parameters") for net in (student, teacher))
    if ours and theirs:
        same = " as the teacher" if (compared := size(theirs, ours)) == _SAME_SIZE else ""
        found.append((f"{compared}{same}", f"{ours:,.0f} of {theirs:,.0f} parameters"))
    ours, theirs = (_number(net, "acc1") for net in (student, teacher))
    if ours is not None and theirs:
        what = f"student {ours:.2f} %, teacher {theirs:.2f} %, on the test images"
        found.append((f"{100 * ours / theirs:.1f} % of the teacher's accuracy", what))
    for key, images in _AGREEMENTS.items():
        if (share := _number(student, key)) is not None:
            found.append((f"{share:.1f} % agreement", f"of student and teacher on the {images}"))
    return found


def size(teacher: float, student: float) -> str:
    """Describes the number of a student's parameters beside its teacher's."""
    if max(teacher, student) <= _SAME * min(teacher, student):
        return _SAME_SIZE
    return f"{teacher / student:.1f}× smaller" if student < teacher else f"{student / teacher:.1f}× larger"


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return value if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) else None
