"""Charts of many runs: bars with standard deviations over seeds, and heat maps over two settings."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cudfkd_jax.report import plot
from cudfkd_jax.report.plot import Picture

_ROOM = 0.25  # margin below the lowest value, as a fraction of the values' range
_MAP = "cividis"  # its order is visible with any colour vision


class Bars(NamedTuple):
    """A panel of bars.

    Attributes:
        unit: axis label with the unit of the numbers.
        series: the numbers of each bar, one per seed, by series and then by group; a group may be missing.
    """

    unit: str
    series: Mapping[str, Mapping[str, Sequence[float]]]


class HeatMap(NamedTuple):
    """A panel of coloured cells.

    Attributes:
        title: shown above the panel.
        values: `[rows, columns]`, NaN for missing values.
        digits: decimal places.
    """

    title: str
    values: np.ndarray
    digits: int


def bars(name: str, title: str, panels: Sequence[Bars], x_label: str) -> Picture:
    """Draws each group's mean and standard deviation over seeds, and a dot per seed; one panel per unit."""
    counts = {len(numbers) for panel in panels for of in panel.series.values() for numbers in of.values()}
    several = max(counts, default=0) > 1
    caption = "Mean and standard deviation over seeds; a dot is a run." if several else "A bar is a run."
    starts = [_start([v for of in panel.series.values() for vs in of.values() for v in vs]) for panel in panels]

    def draw(figure: Figure) -> None:
        many = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel, start in zip(many, panels, starts, strict=True):
            _draw_bars(axes, panel, start)
        many[-1].set_xlabel(x_label)
        if any(len(panel.series) > 1 for panel in panels):
            plot.legend_above(figure, many[0])

    if any(starts):
        caption += " The vertical axes do not start at 0."
    return plot.picture(name, title, caption, draw, height=2.4 * len(panels) + 0.6)


def heat_maps(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[HeatMap],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    *,
    across: int = 1,
) -> Picture:
    """Draws numbers over two settings as coloured cells, with `across` panels side by side.

    Args:
        name, title, caption: see `Picture`.
        panels: from left to right, then top to bottom.
        rows, columns: name and values of each setting.
        across: number of panels per row.
    """
    down = -(-len(panels) // across)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_heat_map(axes, panel)
            axes.set_xticks(range(len(columns[1])), columns[1])
            axes.set_yticks(range(len(rows[1])), rows[1])
        for axes in grid[-1]:
            axes.set_xlabel(columns[0])
        for axes in grid[:, 0]:
            axes.set_ylabel(rows[0])

    size = max(0.75 * len(columns[1]), 1.6) + 0.7, 0.5 * len(rows[1]) + 0.9
    return plot.picture(
        name, title, caption, draw, width=max(size[0] * across, 3.2), height=max(size[1] * down, 2.2)
    )


def _start(values: Sequence[float]) -> float:
    """Returns the start of an axis: 0, or a little below the lowest value if the values are close together."""
    if not values or min(values) <= 0 or min(values) < max(values) / 2:
        return 0.0
    spread = max(max(values) - min(values), 0.01 * max(values))
    step = 10.0 ** np.floor(np.log10(spread))
    return float(max(np.floor((min(values) - _ROOM * spread) / step) * step, 0.0))


def _draw_bars(axes: Axes, panel: Bars, start: float) -> None:
    groups = list(dict.fromkeys(group for of in panel.series.values() for group in of))
    width = 0.8 / len(panel.series)
    for index, (label, of) in enumerate(panel.series.items()):
        shift = (index - (len(panel.series) - 1) / 2) * width
        places = [groups.index(group) + shift for group, numbers in of.items() if numbers]
        found = [list(numbers) for numbers in of.values() if numbers]
        means = [statistics.fmean(numbers) for numbers in found]
        errors = [statistics.stdev(numbers) if len(numbers) > 1 else 0.0 for numbers in found]
        colour = plot.COLOURS[index % len(plot.COLOURS)]
        axes.bar(places, [mean - start for mean in means], 0.9 * width, bottom=start, color=colour, label=label)
        several = [i for i, numbers in enumerate(found) if len(numbers) > 1]
        axes.errorbar(
            [places[i] for i in several],
            [means[i] for i in several],
            yerr=[errors[i] for i in several],
            linestyle="",
            ecolor=mpl.rcParams["text.color"],
            capsize=3,
        )
        for i in several:
            axes.plot([places[i]] * len(found[i]), found[i], "o", color="#888888", markeredgecolor="white")
    axes.set_ylabel(panel.unit)
    axes.set_ylim(bottom=start)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)


def _draw_heat_map(axes: Axes, panel: HeatMap) -> None:
    shown = np.ma.masked_invalid(panel.values)
    image = axes.imshow(shown, cmap=_MAP, aspect="auto")
    for (row, column), value in np.ndenumerate(panel.values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            axes.text(column, row, f"{value:.{panel.digits}f}", ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_title(panel.title, loc="left")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(panel.values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(panel.values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="white", linewidth=2, alpha=1)
    axes.tick_params(which="both", length=0)
