"""Differences between our quantities and the release's, their verdicts, and the table."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

EQUAL, NAMED, DIFFERS, NOT_SHOWN = "equal", "named", "DIFFERS", "NOT SHOWN"


class Precision(NamedTuple):
    """The tolerances for equality.

    Attributes:
        dtype: the dtype of both sides.
        relative: limit of the largest difference over the largest value, for a scalar, an array, or any array of a
            tree.
        norm: limit of the difference's norm over the norm of a whole tree, which replaces `relative`; 0: not used.
    """

    dtype: str
    relative: float
    norm: float


FLOAT64 = Precision("float64", 1e-6, 0.0)
FLOAT32 = Precision("float32", 1e-3, 1e-2)  # rounding of a step at real batch sizes


@dataclasses.dataclass
class Row:
    """One quantity of one case, over all its comparisons.

    Attributes:
        method, case, quantity: identify the row.
        named: the page that documents a difference, or "" if none is expected.
        note: a remark for the reader.
        count: number of comparisons.
        absolute, relative: the largest differences, over all arrays of a tree.
        norm: the largest ‖ours − theirs‖ / ‖theirs‖ of parameters and gradients; None otherwise.
        precision: the tolerances.
    """

    method: str
    case: str
    quantity: str
    named: str
    note: str
    precision: Precision
    count: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    norm: float | None = None

    @property
    def verdict(self) -> str:
        """`EQUAL` or `NAMED`; `DIFFERS`: undocumented difference; `NOT_SHOWN`: documented difference missing."""
        if self.norm is not None and self.precision.norm:
            equal = self.norm <= self.precision.norm
        else:
            equal = self.relative <= self.precision.relative
        if self.named:
            return NOT_SHOWN if equal else NAMED
        return EQUAL if equal else DIFFERS

    @property
    def failed(self) -> bool:
        return self.verdict in (DIFFERS, NOT_SHOWN)


class Report:
    """The rows of a run, in order of their first comparison."""

    def __init__(self, precision: Precision, log: Callable[[str], None] = print) -> None:
        self.precision = precision
        self.log = log
        self.rows: dict[tuple[str, str, str], Row] = {}

    def case(self, method: str, case: str) -> "Case":
        self.log(f"{method}: {case}")
        return Case(self, method, case)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows.values() if row.failed]


class Case:
    """One setting of one method; repeated comparisons of a quantity share a row."""

    def __init__(self, report: Report, method: str, name: str) -> None:
        self.report, self.method, self.name = report, method, name

    def compare(
        self,
        quantity: str,
        ours: Any,
        theirs: Any,
        *,
        named: str = "",
        note: str = "",
        only_float64: bool = False,
    ) -> None:
        """Adds a comparison of scalars, arrays or trees of arrays.

        Args:
            quantity: the name of the quantity.
            ours, theirs: values with the same shapes and structure.
            named: the page that documents a difference, which then must occur; "" if none is expected.
            note: a remark for the reader.
            only_float64: whether to skip the comparison in float32, where rounding dominates it.

        Raises:
            ValueError: shapes, or the structures of trees, differ.
        """
        if only_float64 and self.report.precision is not FLOAT64:
            return
        key = (self.method, self.name, quantity)
        if key not in self.report.rows:
            self.report.rows[key] = Row(*key, named, note, self.report.precision)
        row = self.report.rows[key]
        differences = _leaf_differences(ours, theirs)
        row.count += 1
        row.absolute = max(row.absolute, *(each.absolute for each in differences))
        row.relative = max(row.relative, *(each.relative for each in differences))
        if len(differences) > 1:
            squared = [sum(each.squares[i] for each in differences) for i in (0, 1)]
            row.norm = max(row.norm or 0.0, _ratio(squared[0] ** 0.5, squared[1] ** 0.5))
        if row.failed:
            worst = max(differences, key=lambda each: each.relative)
            self.report.log(
                f"  {row.verdict} {quantity}: {row.relative:.1e} relative {worst.where} "
                f"(ours {worst.values[0]:.9g}, theirs {worst.values[1]:.9g})"
            )


class _Difference(NamedTuple):
    where: str
    absolute: float
    relative: float
    squares: tuple[float, float]  # of the difference and of theirs
    values: tuple[float, float]  # ours and theirs where they differ most


def _leaf_differences(ours: Any, theirs: Any) -> list[_Difference]:
    (a, structure), (b, other) = (jax.tree.flatten(_plain(tree)) for tree in (ours, theirs))
    if str(structure) != str(other) or not a:
        raise ValueError(f"compared trees have different structures: {structure} and {other}")
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(_plain(theirs))]
    return [_difference(*leaves) for leaves in zip(names, a, b, strict=True)]


def _difference(where: str, ours: Any, theirs: Any) -> _Difference:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"compared arrays {where} have different shapes: {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return _Difference(where, np.inf, np.inf, (np.inf, 1.0), (np.nan, np.nan))
    gap = np.abs(a - b)
    at = np.unravel_index(np.argmax(gap), gap.shape)
    absolute, size = float(gap[at]), float(np.max(np.abs(b)))
    squares = float(np.sum(gap**2)), float(np.sum(b**2))
    return _Difference(where, absolute, _ratio(absolute, size), squares, (float(a[at]), float(b[at])))


def _ratio(difference: float, size: float) -> float:
    return difference / size if size else 0.0 if difference == 0 else np.inf


def _plain(tree: Any) -> Any:
    """Converts mappings of any type to dicts, so that only names and order matter."""
    if hasattr(tree, "items"):
        return {key: _plain(value) for key, value in tree.items()}
    return tree


HEADER = (
    "| quantity | compared | largest absolute | largest relative | of the norm | verdict | |",
    "|---|---|---|---|---|---|---|",
)


def table(report: Report) -> str:
    """Formats the rows as Markdown, under a heading per method and case."""
    lines: list[str] = []
    heading = ("", "")
    for row in report.rows.values():
        if (row.method, row.case) != heading:
            if row.method != heading[0]:
                lines += ["", f"## {row.method}"]
            heading = row.method, row.case
            lines += ["", f"### {row.case}", "", *HEADER]
        norm = "" if row.norm is None else f"{row.norm:.0e}"
        remark = "; ".join(filter(None, (row.named, row.note)))
        lines.append(
            f"| {row.quantity} | {row.count} | {row.absolute:.0e} | {row.relative:.0e} | {norm} | "
            f"{row.verdict} | {remark} |"
        )
    return "\n".join(lines).strip() + "\n"
