"""What a table or a figure of the paper consists of: descriptions, and nothing that runs."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cudfkd_jax.experiments.paper_numbers import Pair

SCALES = ("digits", "cifar10_cpu", "cifar10", "cifar100", "tiny_imagenet")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, and where its outcome stands.

    Attributes:
        config: a file of `configs/` without its suffix, with arguments after a colon.
        row: in the table, or the bar's or curve's name.
        block: which table or panel, where there are several.
        column: in a figure of two settings.
        changes: settings by dotted key.
        seed: of the student; teachers have seed 0.
        stage: "distill", or "scratch": the student trained on the data.
    """

    config: str
    row: str
    block: str = ""
    column: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    stage: str = "distill"

    @property
    def name(self) -> str:
        """What the user reads."""
        parts = filter(None, (self.block, self.row, self.column))
        return f"{' | '.join(parts)} | seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """An entry at a scale.

    Attributes:
        runs: that it needs.
        choices: what the paper leaves open or says in two ways, and what was chosen.
        too_small: why the effect cannot be expected here; "" where it can.
        beside: by block, the pair whose numbers in the paper stand beside ours.
        epochs: early and late, of what is shown at two times.
        form: how the outcome is drawn in the place of the entry's form; "" for that.
    """

    runs: Sequence[Run]
    choices: Sequence[str] = ()
    too_small: str = ""
    beside: Mapping[str, Pair] = dataclasses.field(default_factory=dict)
    epochs: tuple[int, int] = (0, 0)
    form: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A table or a figure.

    Attributes:
        name: as it is asked for.
        title: in a line.
        finds: what the paper says that it shows, with the numbers that its text gives.
        form: how the outcome is drawn; one of `forms.FORMS`.
        scales: by name, those that it has.
        axes: names of rows and columns.
        varies: the settings that tell its runs apart, which no `--config.KEY=VALUE` may change.
        values: accuracies in the paper, in percent, by row.
        values_of: what those were measured on.
    """

    name: str
    title: str
    finds: str
    form: str
    scales: Mapping[str, Setting]
    axes: tuple[str, str] = ("method", "")
    varies: Sequence[str] = ()
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    values_of: str = ""


LABELS = {
    "cudfkd": "CuDFKD",
    "dafl": "DAFL",
    "zskt": "ZSKT",
    "dfad": "DFAD",
    "dfq": "DFQ",
    "adi": "ADI",
    "cmi": "CMI",
    "mb_dfkd": "MB-DFKD",
    "pre_dfkd": "PRE-DFKD",
    "scratch": "student from data",
    "teacher": "teacher",
}


def pair_name(teacher: str, student: str) -> str:
    """ "resnet34 → resnet18"."""
    return f"{teacher} → {student}"


def arguments(teacher: str, student: str, method: str = "cudfkd") -> str:
    """What stands after the colon of `--config`."""
    return f"teacher={teacher},student={student},method={method}"


def methods(
    scale: str,
    pair: tuple[str, str],
    names: Iterable[str],
    *,
    epochs: int,
    seeds: Mapping[str, Sequence[int]] | None = None,
    changes: Mapping[str, Any] | None = None,
    noisy: bool = False,
    column: str = "",
) -> list[Run]:
    """A run for each method and seed, all of as many epochs.

    Args:
        scale: the configuration file.
        pair: teacher and student.
        names: of methods, and "scratch".
        epochs: of distillation.
        seeds: by method; 0 alone for others.
        changes: for every method; see `Run`.
        noisy: whether the teacher is.
        column: see `Run`.
    """
    runs = []
    for name in names:
        method = "cudfkd" if name == "scratch" else name
        given = arguments(*pair, method) + ",noisy" * noisy
        own = {} if name == "scratch" else {"distill.epochs": epochs, **_own(name, pair), **(changes or {})}
        runs += [
            Run(
                f"{scale}:{given}",
                name,
                pair_name(*pair),
                column,
                own,
                seed,
                "scratch" if name == "scratch" else "distill",
            )
            for seed in (seeds or {}).get(name, (0,))
        ]
    return runs


def varied(
    config: str, block: str, key: str, values: Iterable[Any], seeds: Iterable[int] = (0,), **fixed: Any
) -> list[Run]:
    """CuDFKD with each value of a setting and each seed; `fixed` as `Run.changes`, with "__" for dots."""
    same = {name.replace("__", "."): value for name, value in fixed.items()}
    return [
        Run(config, _short(value), block, changes={**same, key: value}, seed=seed)
        for value in values
        for seed in seeds
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _own(method: str, pair: tuple[str, str]) -> dict[str, Any]:
    """What a method needs for networks that it was not published with."""
    if method == "zskt" and pair[0].startswith("vgg"):
        return {"zskt.attention_weight": 0.0}  # stages of other sizes than a ResNet's
    return {}
