"""The HTML page: one self-contained file that adapts to light or dark mode and to the width of the window."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from cudfkd_jax.report.plot import Picture
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
.figures { columns: 3 20rem; column-gap: 1.5rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figure svg, figure img { display: block; width: 100%; height: auto; max-width: 34rem; }
figure svg text { font-family: inherit !important; }
figure img { image-rendering: pixelated; max-width: 22rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 34rem; }
figcaption b { color: var(--ink); }
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


def page(title: str, subtitle: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    """Returns a complete document; title, subtitle and notes are plain text; empty sections are omitted."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    listed = f'<ul class="notes">{items}</ul>' if notes else ""
    parts = "".join(f"<section><h2>{escape(s.title)}</h2>\n{s.body}</section>\n" for s in sections if s.body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n"
        f"{listed}\n{parts}</body>\n</html>\n"
    )


def figures(pictures: Sequence[Picture]) -> str:
    """Returns markup for figures, side by side where space permits."""
    shown = "".join(
        f"<figure>{_labelled(p)}<figcaption><b>{escape(p.title)}.</b> {escape(p.caption)}</figcaption></figure>\n"
        for p in pictures
    )
    return f'<div class="figures">\n{shown}</div>\n' if shown else ""


def image(png: bytes, title: str, caption: str) -> str:
    """Returns markup for a PNG file with a caption."""
    with Image.open(io.BytesIO(png)) as opened:
        width, height = opened.size
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>\n"
    )


def images(shown: Sequence[str]) -> str:
    """Returns markup for images, side by side where space permits."""
    return f'<div class="figures">\n{"".join(shown)}</div>\n' if shown else ""


def table(rows: Sequence[Row], kind: str) -> str:
    """Returns markup for a table; the first row holds the headings for kind "numbers", but not for "pairs"."""
    head, body = (rows[0], rows[1:]) if kind == "numbers" else ((), rows)
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n{lines}</tbody></table></div>\n'


def _labelled(picture: Picture) -> str:
    label = escape(f"{picture.title}. {picture.caption}")
    return picture.inline.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
