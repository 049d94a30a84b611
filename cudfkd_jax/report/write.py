"""Writing of `report.html` for a run and `compare.html` for several, from the runs' files alone.

Every figure is also saved under `report/` as PNG and SVG.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.evaluation.headline import SHARES, headline
from cudfkd_jax.evaluation.summary import BEST
from cudfkd_jax.report import figures, page, plot, tables
from cudfkd_jax.report.files import COMPARISON, FOLDER, REPORT, is_missing
from cudfkd_jax.report.page import Section
from cudfkd_jax.report.plot import Picture
from cudfkd_jax.report.read import Run, is_finite, read, read_config
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import is_torch_path
from cudfkd_jax.storage.files import write_bytes

_SETTINGS = "config.py"


def write_report(folder: Path) -> Path:
    """Writes `report.html` of a run in any state, and `report/`.

    Args:
        folder: the run's workdir.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder holds no run, or its configuration cannot be read; nothing is written.
    """
    run = read(folder)
    drawn = figures.of_run(run)
    repeat = _repeat(run)
    sections = (
        Section("Results", page.table(tables.results([run]), "numbers") + _footnote([run]) + _pairs(run)),
        Section("Curves", _curves(drawn)),
        Section("Single images and classes", _group("Single images", _OF_SINGLE, drawn, _SINGLE)),
        Section("Synthetic images", _synthetic_images(run)),
        Section("To repeat it", repeat),
        Section("Settings", f"<details><summary>all {len(run.config)}</summary>\n"
                f"{page.table(tables.settings(run), 'pairs')}</details>\n"),
    )  # fmt: skip
    title = f"{run.config.get('method', '?')} on {run.config.get('data.name') or 'no data'}: {run.name}"
    text = page.page(title, _networks(run), [*run.notes, *_missing(run, drawn)], sections, _headline(run))
    _write_files(folder, drawn, prefix="")
    write_bytes(folder / FOLDER / _SETTINGS, tables.configuration_file(run).encode())
    write_bytes(folder / REPORT, text.encode(errors="replace"))
    return folder / REPORT


def write_missing(folder: Path) -> None:
    """Writes a finished run's missing page, if `log.report` is set.

    Raises:
        UserError: its configuration cannot be read.
    """
    if is_missing(folder) and read_config(folder).get("log.report"):
        write_report(folder)


def write_comparison(folders: Sequence[Path], folder: Path) -> Path:
    """Writes `compare.html`, with the curves of several runs overlaid, and `report/compare_*` into `folder`.

    Raises:
        UserError: fewer than two runs are given, one is repeated, or one cannot be read; nothing is written.
    """
    if len(folders) < 2:
        raise UserError(
            f"--compare needs two runs or more and got {len(folders)}; name them as in --compare=runs/a,runs/b"
        )
    places = [each.resolve() for each in folders]
    if twice := next((f for f, p in zip(folders, places, strict=True) if places.count(p) > 1), None):
        raise UserError(f"--compare names {twice} twice; name each run once")
    runs = [read(each, name) for each, name in zip(folders, _names(folders), strict=True)]
    drawn = figures.curves(runs)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    differing = sorted({key for run in runs for key in run.config if _differs(runs, key)})
    rows = [("setting", "", *(run.name for run in runs))]
    rows += [(key, "", *(str(run.config.get(key, "")) for run in runs)) for key in differing]
    sections = (
        Section("Results", page.table(tables.results(runs), "numbers") + _footnote(runs)),
        Section("Curves", _curves(drawn)),
        Section("Settings that differ", page.table(rows, "numbers") if differing else ""),
    )
    text = page.page("Runs compared", ", ".join(f"{run.name} ({run.folder})" for run in runs), notes, sections)
    _write_files(folder, drawn, prefix="compare_")
    write_bytes(folder / COMPARISON, text.encode(errors="replace"))
    return folder / COMPARISON


_TESTED = ("accuracy", "loyalty", "convergence")
_SINGLE = ("difficulty", "loyalty_histogram", "classes")
_OF_TESTED = "How good the student is, and how close to its teacher, after each epoch."
_OF_SINGLE = "What the means over many images hide: the few that are hard, and the classes that lag behind."
_OF_IMAGES = (
    "What the student learned from, instead of data; early and late. By class: a row a class as the teacher sees "
    "it, class 0 at the top; grey where it saw none."
)
_MISSING = {
    "accuracy": "No accuracy or agreement has been measured yet.",
    "losses": "No losses have been recorded yet.",
    "difficulty": "No difficulty of single images was recorded (log.samples_every_epochs; old versions did not).",
    "loyalty_histogram": "No loyalty of single test images was recorded.",
    "classes": "No accuracy by class was recorded.",
}


def _missing(run: Run, drawn: Sequence[Picture]) -> list[str]:
    """Returns one line for each part of the page without data."""
    names = {picture.name for picture in drawn}
    lines = [text for name, text in _MISSING.items() if name not in names]
    for kind, what in (
        ("epoch", "pictures of synthetic images"),
        ("classes", "pictures of synthetic images by class"),
    ):
        if not run.pictures[kind]:
            lines.append(f"There are no {what} (log.samples_every_epochs).")
    return lines


def _footnote(runs: Sequence[Run]) -> str:
    if any("acc1" in record for run in runs for record in run.records):
        return f"<p>{BEST}: the one student with the best acc@1 on the test images.</p>\n"
    return "<p>Measured on held-out synthetic images, where at all: of real images nothing is known.</p>\n"


def _pairs(run: Run) -> str:
    return page.table(tables.facts(run), "pairs")


def _networks(run: Run) -> str:
    teacher, student = (
        run.config.get(f"{role}.module") or run.config.get(f"{role}.arch", "?") for role in ("teacher", "student")
    )
    return (
        f"{student} distilled from {teacher}, {run.config.get('data.num_classes', '?')} classes, in {run.folder}"
    )


def _headline(run: Run) -> str:
    last = next((r for r in reversed(run.records) if any(is_finite(r.get(key)) for key in SHARES)), {})
    student = run.summary.get("student")
    sizes = {"parameters": student.get("parameters")} if isinstance(student, dict) else {}
    return page.headline(headline(run.teacher, {**last, **sizes}))


def _curves(drawn: Sequence[Picture]) -> str:
    others = [picture for picture in drawn if picture.name not in (*_TESTED, *_SINGLE)]
    return _group("Accuracy and loyalty", _OF_TESTED, drawn, _TESTED) + "".join(
        page.figures(picture.title, picture.caption, picture.parts) for picture in others
    )


def _group(title: str, text: str, drawn: Sequence[Picture], names: Sequence[str]) -> str:
    parts = [part for picture in drawn if picture.name in names for part in picture.parts]
    # Pictures of several runs have the same legend.
    return page.figures(title, text, [p for index, p in enumerate(parts) if not index or p.title != plot.LEGEND])


def _synthetic_images(run: Run) -> str:
    pairs = [
        [
            (run.pictures[kind][epoch], f"{label} epoch {epoch}")
            for epoch in figures.choose_epochs(list(run.pictures[kind]), 2)
        ]
        for kind, label in (("epoch", "After"), ("classes", "By class,"))
    ]
    return page.images("Synthetic images", _OF_IMAGES, pairs)


def _repeat(run: Run) -> str:
    given = run.config.get("teacher.checkpoint") or is_torch_path(run.config.get("teacher.module", ""))
    if run.config.get("data.source") == "none" and not given:
        return "<p>It was started from Python: call <code>cudfkd_jax.distill</code> with the settings below.</p>\n"
    file = shlex.quote(str(run.folder / FOLDER / _SETTINGS))
    again = shlex.quote(f"{run.folder}_again")
    command = f"python -m cudfkd_jax.main --config={file} --workdir={again}"
    return f"<pre>{page.escape(command)}</pre>\n<p>The file holds every setting of this run.</p>\n"


def _write_files(folder: Path, drawn: Sequence[Picture], *, prefix: str) -> None:
    for picture in drawn:
        plot.write(picture, folder / FOLDER, f"{prefix}{picture.name}")


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest path suffixes that distinguish the folders."""
    parts = [each.resolve().parts for each in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _differs(runs: Sequence[Run], key: str) -> bool:
    return any(run.config.get(key) != runs[0].config.get(key) for run in runs)
