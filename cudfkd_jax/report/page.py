"""The HTML page: one self-contained file that adapts to light or dark mode and to the width of the window."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from cudfkd_jax.report.plot import Part
from cudfkd_jax.report.tables import Row

_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1c1d; --paper: #fff;
  --soft: #5c6166; --line: #d8dbde; --box: #f5f6f7; --blue: #0072b2; --sky: #56b4e9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ea; --paper: #131517; --soft: #a3a9af; --line: #35393d; --box: #1d2023;
    --blue: #56b4e9; --sky: #0072b2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { margin: .4rem 0; max-width: 46rem; }
ul.notes { margin: 1rem 0; padding: .6rem 1rem .6rem 2rem;
  background: var(--box); border-left: 4px solid #d55e00; }
.headline { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.headline div { flex: 1 1 15rem; background: var(--box); padding: .7rem 1rem; }
.headline b { display: block; font-size: 1.7rem; line-height: 1.25; color: var(--blue); }
.headline span { color: var(--soft); font-size: .9rem; }
.figures { display: grid; gap: 1.2rem 1.5rem; margin: 1rem 0 1.5rem; }
@media (min-width: 40rem) { .figures { grid-template-columns: repeat(2, 1fr); } .two { grid-column: span 2; } }
@media (min-width: 62rem) { .figures { grid-template-columns: repeat(3, 1fr); }
  .about { grid-column: span 1; } .three2 { grid-column: span 2; } .three3 { grid-column: span 3; } }
.about { background: var(--box); padding: .7rem 1rem; }
h3 { font-size: 1rem; margin: 0; }
.about p { color: var(--soft); font-size: .9rem; }
figure { margin: 0; min-width: 0; }
figure b { font-size: .9rem; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--soft); font-size: .9rem; line-height: 1.35; margin-top: .3rem; }
.images { display: flex; flex-wrap: wrap; gap: 1.2rem 1.5rem; margin: 1rem 0; }
.images .about { flex: 1 1 13rem; }
.pair { display: flex; gap: 1rem; }
.pair figure { flex: 1; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
.numbers td:nth-child(n+3), .numbers th:nth-child(n+3) { text-align: right; white-space: nowrap; }
.pairs td:last-child { overflow-wrap: anywhere; }
pre { background: var(--box); padding: .6rem .8rem; white-space: pre-wrap; margin: .4rem 0; font-size: .9rem; }
summary { cursor: pointer; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    """A heading, and the markup under it."""

    title: str
    body: str


def escape(text: str) -> str:
    """Escapes plain text for use in markup."""
    return html.escape(text)


def page(title: str, subtitle: str, notes: Sequence[str], sections: Sequence[Section], top: str = "") -> str:
    """Returns a complete document; title, subtitle and notes are plain text; empty sections are omitted.

    `top` is markup above the sections.
    """
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    listed = f'<ul class="notes">{items}</ul>' if notes else ""
    parts = "".join(f"<section><h2>{escape(s.title)}</h2>\n{s.body}</section>\n" for s in sections if s.body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n"
        f"{listed}\n{top}{parts}</body>\n</html>\n"
    )


def headline(shown: Sequence[tuple[str, str]]) -> str:
    """Returns markup for the figures of a headline, each with the numbers that it is made of."""
    tiles = "".join(f"<div><b>{escape(large)}</b><span>{escape(small)}</span></div>\n" for large, small in shown)
    return f'<div class="headline">\n{tiles}</div>\n' if shown else ""


def figures(title: str, text: str, parts: Sequence[Part]) -> str:
    """Returns markup for a description and figures of one size, in as many columns as space permits.

    The description takes the cells that the figures leave of whole rows, so that no cell is empty at any width.
    """
    if not parts:
        return ""
    shown = "".join(
        f"<figure><b>{escape(p.title)}</b>{_labelled(p)}"
        f"{f'<figcaption>{escape(p.caption)}</figcaption>' if p.caption else ''}</figure>\n"
        for p in parts
    )
    return f'<div class="figures">\n{_about(title, text, _spans(len(parts)))}{shown}</div>\n'


def _spans(count: int) -> str:
    """Returns the classes that make a description complete the rows of two and of three columns."""
    two = "" if count % 2 else " two"
    return f"{two} three{3 - count % 3}"


def _about(title: str, text: str, classes: str = "") -> str:
    return f'<div class="about{classes}"><h3>{escape(title)}</h3><p>{escape(text)}</p></div>\n'


def images(title: str, text: str, pairs: Sequence[Sequence[tuple[bytes, str]]]) -> str:
    """Returns markup for a description and PNG files with their captions.

    Each of the `pairs` holds images of one shape, which stay side by side. Pairs share the width in proportion to
    their shapes, which makes them equally high.
    """
    shown = "".join(_pair(pair) for pair in pairs if pair)
    return f'<div class="images">\n{_about(title, text)}{shown}</div>\n' if shown else ""


def _pair(pair: Sequence[tuple[bytes, str]]) -> str:
    figures, ratio = "", 0.0
    for png, caption in pair:
        with Image.open(io.BytesIO(png)) as opened:
            width, height = opened.size
        data = base64.b64encode(png).decode()
        ratio += width / height
        figures += (
            f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>\n'
        )
    return f'<div class="pair" style="flex: {ratio:.3f} 1 {12 * ratio:.1f}rem">\n{figures}</div>\n'


def table(rows: Sequence[Row], kind: str) -> str:
    """Returns markup for a table; the first row holds the headings for kind "numbers", but not for "pairs"."""
    head, body = (rows[0], rows[1:]) if kind == "numbers" else ((), rows)
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n{lines}</tbody></table></div>\n'


def _labelled(part: Part) -> str:
    label = escape(f"{part.title}. {part.caption}")
    return part.inline.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
