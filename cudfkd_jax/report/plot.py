"""Drawing: pictures that read well on white and on black, in a page and as files.

In an SVG for a page, text, axes and grid take the colour of the page's text. Colours are those of Okabe and Ito,
which people with any colour vision can tell apart; lines differ in their dashes too.
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
_INK = "#1b1c1d"  # stands for the page's text
# What the page decides: its text, and which of two blues is the light one, for the other is dim on black.
_BY_PAGE = {_INK: "currentColor", "#0072b2": "var(--blue, #0072b2)", "#56b4e9": "var(--sky, #56b4e9)"}
_COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # names of runs are no formulas
    "svg.fonttype": "none",  # text stays text
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
    """A curve: its label and its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing in the forms that are needed.

    Attributes:
        name: of its files.
        title: in one line.
        caption: what is seen, in plain text.
        inline: an `<svg>` element for a page.
        svg, png: files, on white.
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
    """Draws on a figure `width` x `height` inches and keeps it in every form."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(figure)
        text, png = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure.set_layout_engine("none")  # it is laid out, and would be once more
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    inline = _inline(text.getvalue(), name)
    white = '<rect width="100%" height="100%" fill="white"/>'
    alone = re.sub(r"(<svg[^>]*>)", rf"\1{white}", inline, count=1)
    for colour, by_page in _BY_PAGE.items():
        alone = alone.replace(by_page, colour)
    return Picture(name, title, caption, inline, alone.encode(), png.getvalue())


def curves(axes: Axes, lines: Sequence[Line], *, steps: bool = False) -> None:
    """Draws curves in their colours and dashes, with a marker at each point where those are few."""
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
    """Makes the x axis logarithmic, with plain numbers, more of them in each decade where there are few."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, axes: Axes) -> None:
    """A legend that covers no curve; none for a single one without a label."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if max(map(len, labels)) < 24 else 1)


def write(picture: Picture, folder: Path, name: str) -> None:
    """Writes `<name>.svg` and `<name>.png`."""
    write_bytes(folder / f"{name}.svg", picture.svg)
    write_bytes(folder / f"{name}.png", picture.png)


def _inline(svg: str, name: str) -> str:
    """What matplotlib wrote as an element of a page: no metadata, names of its own, the page's ink."""
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
