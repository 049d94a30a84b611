"""Drawing of figures that are legible on white and on black, in a page and as files.

In an SVG for a page, text, axes and grid take the colour of the page's text. The colours are those of Okabe and
Ito, distinguishable with any colour vision; lines also differ in their dashes.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from cudfkd_jax.storage.files import write_bytes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
WIDTH, HEIGHT = 4.8, 3.0  # inches
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
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(_COLOURED, _INK),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A labelled curve."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure in all output formats.

    Attributes:
        name: stem of its file names.
        title: a single line.
        caption: a description in plain text.
        inline: an `<svg>` element for a page.
        svg, png: contents of the files, on white.
    """

    name: str
    title: str
    caption: str
    inline: str
    svg: bytes
    png: bytes


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
        text, png = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure.set_layout_engine("none")  # keeps the finished layout instead of computing it again
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    inline = _inline(text.getvalue(), name)
    white = '<rect width="100%" height="100%" fill="white"/>'
    alone = re.sub(r"(<svg[^>]*>)", rf"\1{white}", inline, count=1)
    for colour, by_page in _BY_PAGE.items():
        alone = alone.replace(by_page, colour)
    return Picture(name, title, caption, inline, alone.encode(), png.getvalue())


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


def logarithmic(axes: Axes) -> None:
    """Makes the x axis logarithmic, with plain numbers, and more ticks per decade over a small range."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, axes: Axes) -> None:
    """Adds a legend above the axes, where it covers no curve, if any curve has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if max(map(len, labels)) < 24 else 1)


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
