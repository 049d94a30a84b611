"""Drawing of figures that are legible on white and on black, in a page and as files.

In an SVG for a page, text, axes and grid take the colour of the page's text. The colours are those of Okabe and
Ito, distinguishable with any colour vision; lines also differ in their dashes.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from cudfkd_jax.storage.files import write_bytes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
WIDTH, HEIGHT = 4.8, 3.0  # inches
LEGEND = "Legend"  # the title of a part that explains the others
_PART, _PANEL, _MARGIN = (3.84, 2.4), 1.15, 0.45  # inches; a panel alone, and in a stack
_FALLEN = 30.0  # ratio of the largest to the smallest value from which an axis is logarithmic
_SATURATED = 0.3  # range of the second half of the values, as a fraction of the whole range
_ROOM = 0.08  # around the values of a zoom, as a fraction of their range
_INK = "#1b1c1d"  # placeholder for the colour of the page's text
# Colours that the page sets: its text and two blues, which it swaps in dark mode as one is too dim on black.
_BY_PAGE = {_INK: "currentColor", "#0072b2": "var(--blue, #0072b2)", "#56b4e9": "var(--sky, #56b4e9)"}
_COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # names of runs are not formulas
    "svg.fonttype": "none",  # keep text as text
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    **dict.fromkeys(_COLOURED, _INK),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A labelled curve."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A set of axes of a figure.

    Attributes:
        title: a single line.
        draw: draws on the axes, except for the label of the x axis.
        caption: a description in plain text, shown where the panel stands alone.
        legend: whether the panel needs a legend where it stands alone.
    """

    title: str
    draw: Callable[[Axes], None]
    caption: str = ""
    legend: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """A panel by itself: its title and caption in plain text, and an `<svg>` element for a page."""

    title: str
    caption: str
    inline: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure in all output formats.

    Attributes:
        name: stem of its file names.
        title: a single line.
        caption: a description in plain text.
        svg, png: contents of the files, on white.
        parts: its panels one by one, all of one size, for a page; empty for figures that no page shows.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    parts: tuple[Part, ...] = ()


def picture(
    name: str,
    title: str,
    caption: str,
    draw: Callable[[Figure], None],
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Picture:
    """Draws on a figure of `width` x `height` inches and returns it in all formats."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(figure)
        ConstrainedLayoutEngine().execute(figure)  # once; an engine of the figure's own would draw for each format
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160, facecolor="white")
        text = _svg(figure)
    white = '<rect width="100%" height="100%" fill="white"/>'
    alone = re.sub(r"(<svg[^>]*>)", rf"\1{white}", _inline(text, name), count=1)
    for colour, by_page in _BY_PAGE.items():
        alone = alone.replace(by_page, colour)
    return Picture(name, title, caption, alone.encode(), png.getvalue())


def stacked(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[Panel],
    below: Callable[[Axes], object],
    *,
    legend: bool = False,
    panel_height: float = _PANEL,
) -> Picture:
    """Draws panels over one another on a shared x axis for the files, and each alone for a page.

    Args:
        name, title, caption: see `Picture`.
        panels: from top to bottom.
        below: labels the x axis.
        legend: whether the stack has a legend; alone, its panels then share one, which precedes them, except those
            that have their own.
        panel_height: height of a panel in the stack, in inches.
    """

    def draw(figure: Figure) -> None:
        many = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(many, panels, strict=True):
            panel.draw(axes)
            axes.set_title(panel.title, loc="left")
        below(many[-1])
        if legend or panels[0].legend:
            legend_above(figure, many[0])

    def alone(panel: Panel) -> Callable[[Figure], None]:
        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            panel.draw(axes)
            below(axes)
            rows = 0
            if panel.legend:
                handles, labels = axes.get_legend_handles_labels()
                columns = _columns(labels)
                rows = -(-len(labels) // columns)
                figure.legend(handles, labels, loc="upper left", ncols=columns, borderaxespad=0)
            # Much faster than a computed layout; and axes of one size, in one row, are easier to compare.
            figure.subplots_adjust(left=0.2, right=0.98, bottom=0.19, top=0.97 - 0.08 * rows)

        return draw

    def key(figure: Figure) -> None:
        axes = figure.subplots()
        panels[0].draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        axes.remove()
        figure.legend(handles, labels, loc="center", fontsize=9.5)

    parts = [
        Part(panel.title, panel.caption, inline(f"{name}_{index}", alone(panel)))
        for index, panel in enumerate(panels)
    ]
    if legend and not panels[0].legend:
        parts.insert(0, Part(LEGEND, "", inline(f"{name}_legend", key)))
    whole = picture(name, title, caption, draw, height=max(panel_height * len(panels) + _MARGIN, HEIGHT / 2))
    return dataclasses.replace(whole, parts=tuple(parts))


def inline(name: str, draw: Callable[[Figure], None]) -> str:
    """Draws a figure of the size of a part and returns it as an `<svg>` element for a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_PART)
        draw(figure)
        return _inline(_svg(figure), name)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def zoom(lines: Sequence[Line], *more: float) -> tuple[float, float] | None:
    """Returns limits of the y axis around the part in which curves have saturated.

    Args:
        lines: curves over a common x axis.
        more: further values that the part contains.

    Returns:
        The range of the values in the second half of the x axis, with some room; None where it is not much smaller
        than the range of all values, or there are hardly any.
    """
    places = [x for line in lines for x in line.x]
    if len(set(places)) < 4:
        return None
    middle = (min(places) + max(places)) / 2
    values = [*(y for line in lines for y in line.y), *more]
    late = [*(y for line in lines for x, y in zip(line.x, line.y, strict=True) if x > middle), *more]
    whole, span = max(values) - min(values), max(late) - min(late)
    if span > _SATURATED * whole or whole == 0:
        return None
    room = _ROOM * max(span, 0.01 * whole)
    return min(late) - room, max(late) + room


def has_fallen(lines: Sequence[Line]) -> bool:
    """Returns whether curves span so many powers of ten that only a logarithmic axis shows all of them."""
    values = [y for line in lines for y in line.y]
    return bool(values) and min(values) > 0 and max(values) > _FALLEN * min(values)


def curves(axes: Axes, lines: Sequence[Line], *, steps: bool = False) -> None:
    """Draws curves in different colours and dashes, with markers if they have few points."""
    for index, line in enumerate(lines):
        axes.plot(
            line.x,
            line.y,
            label=line.label,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[(index + index // len(COLOURS)) % len(DASHES)],
            marker="o" if len(line.x) <= 20 and not steps else None,
            drawstyle="steps-mid" if steps else None,
        )


def epochs_below(axes: Axes) -> None:
    """Labels the x axis with whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def logarithmic(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Makes an axis logarithmic, with plain numbers, and more ticks per decade over a small range."""
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    subs = (1, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, axes: Axes) -> None:
    """Adds a legend above the axes, where it covers no curve, if any curve has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=_columns(labels))


def _columns(labels: Sequence[str]) -> int:
    """Returns the number of columns of a legend."""
    return 2 if max(map(len, labels), default=0) < 24 else 1


def write(picture: Picture, folder: Path, name: str) -> None:
    """Writes `<name>.svg` and `<name>.png`."""
    write_bytes(folder / f"{name}.svg", picture.svg)
    write_bytes(folder / f"{name}.png", picture.png)


def _inline(svg: str, name: str) -> str:
    """Adapts matplotlib's SVG for a page: drops metadata, makes ids unique, and uses the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    names = {first or second for first, second in used}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in names else "", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for colour, name in _BY_PAGE.items():
        svg = svg.replace(colour, name)
    return svg.strip()
