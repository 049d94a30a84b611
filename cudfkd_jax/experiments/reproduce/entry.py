"""Declarative descriptions of the paper's tables and figures."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cudfkd_jax.experiments.paper_numbers import Pair
from cudfkd_jax.methods import METHODS, find
from cudfkd_jax.runtime.errors import UserError

SCALES = ("digits", "cifar10_cpu", "cifar10", "cifar100", "tiny_imagenet")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, and the position of its results.

    Attributes:
        config: a file of `configs/` without its suffix, with arguments after a colon.
        row: its row in the table, or the name of its bar or curve.
        block: its table or panel, if there are several.
        column: its column in a figure of two settings.
        changes: settings by dotted key.
        seed: the student's seed; teachers have seed 0.
        stage: "distill", or "scratch" for a student trained on the data.
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
        """The name shown to the user."""
        parts = filter(None, (self.block, self.row, self.column))
        return f"{' | '.join(parts)} | seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """An entry at one scale.

    Attributes:
        runs: its runs.
        choices: ambiguities of the paper, and the choices made here.
        too_small: why the effect cannot be expected at this scale; "" if it can.
        beside: by block, the pair whose numbers in the paper are shown beside ours.
        epochs: the early and the late epoch of a figure that shows two.
        form: overrides the entry's form; "" keeps it.
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
        name: its name on the command line.
        title: its title, in one line.
        finds: the paper's finding, with the numbers that its text states.
        form: how the results are drawn; one of `forms.FORMS`.
        scales: its settings by name of the scale.
        axes: names of rows and columns.
        varies: the settings that distinguish its runs, which no `--config.KEY=VALUE` may override.
        values: accuracies in the paper, in percent, by row.
        values_of: the data and networks of `values`.
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


_LABELS = {name: spec.label for name, spec in METHODS.items()} | {
    "scratch": "student from data",
    "teacher": "teacher",
}


def label(row: str) -> str:
    """Returns a row's name in tables: the label of a method, or the row itself."""
    return _LABELS.get(row, row)


def with_method(entry: Entry, scale: str, name: str) -> Entry:
    """Adds a method as another row, with the networks, epochs and seeds of CuDFKD's runs.

    Args:
        entry: an entry whose rows are methods.
        scale: the scale that gets the row.
        name: the method's name or import path.

    Raises:
        UserError: the method is unknown, or the entry has no runs of CuDFKD by that name.
    """
    method, setting = find(name), entry.scales[scale]
    added = [
        dataclasses.replace(run, config=run.config.replace("method=cudfkd", f"method={name}"), row=method.label)
        for run in setting.runs
        if run.row == "cudfkd"
    ]
    if not added:
        raise UserError(f"--method={name}: the rows of {entry.name} are not methods; leave it out")
    changed = dataclasses.replace(setting, runs=[*setting.runs, *added])
    return dataclasses.replace(entry, scales={**entry.scales, scale: changed})


def pair_name(teacher: str, student: str) -> str:
    """Returns a name such as "resnet34 → resnet18"."""
    return f"{teacher} → {student}"


def arguments(teacher: str, student: str, method: str = "cudfkd") -> str:
    """Returns the arguments after the colon of `--config`."""
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
    """Returns one run per method and seed, all with the same number of epochs.

    Args:
        scale: the configuration file.
        pair: teacher and student.
        names: method names, and "scratch".
        epochs: epochs of distillation.
        seeds: seeds by method; other methods take seed 0.
        changes: settings for every method; see `Run`.
        noisy: whether the teacher is the noisy one.
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
    """Returns CuDFKD runs with each value of a setting and each seed; `fixed` as `Run.changes`, "__" for dots."""
    same = {name.replace("__", "."): value for name, value in fixed.items()}
    return [
        Run(config, _short(value), block, changes={**same, key: value}, seed=seed)
        for value in values
        for seed in seeds
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _own(method: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Returns the settings that a method needs for networks other than its paper's."""
    if method == "zskt" and pair[0].startswith("vgg"):
        return {"zskt.attention_weight": 0.0}  # its stages differ in size from a ResNet's
    return {}
