"""The files of an entry: its results, its runs and the choices made."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.experiments.outcomes import failures, machine, markdown, summaries
from cudfkd_jax.experiments.reproduce import forms
from cudfkd_jax.experiments.reproduce.entry import Entry
from cudfkd_jax.experiments.reproduce.jobs import Job, Result
from cudfkd_jax.report import plot
from cudfkd_jax.storage.files import write_bytes

INDEX = "index.md"


def write(job: Job, scale: str, results: Sequence[Result], folder: Path) -> Path:
    """Writes `<entry>.md`, `<entry>.csv` and the pictures to the entry's folder, and returns the page's path."""
    entry, setting = job.entry, job.setting
    drawn = forms.render(entry, setting, results)
    done = summaries(result.outcome for result in results)
    parts = [
        f"# {entry.title}\n",
        f"The paper: {entry.finds}\n",
        f"Scale `{scale}`.{_too_small(setting.too_small)}\n",
    ]
    for title, table in drawn.tables.items():
        parts += [*([f"## {title}\n"] if title else []), table]
    if picture := drawn.picture:
        plot.write(picture, folder, entry.name)
        parts.append(f"![{picture.title}]({entry.name}.png)\n\n{picture.caption}\n")
    for end, (content, caption) in drawn.samples.items():
        write_bytes(folder / f"{entry.name}_{end}.png", content)
        parts.append(f"![{caption}]({entry.name}_{end}.png)\n\n{caption}\n")
    parts.append(failures(result.outcome for result in results))
    parts.append("## What was chosen\n\n" + "".join(f"* {choice}\n" for choice in setting.choices))
    parts.append(f"## Runs\n\n{_NOTE}\n\n{_runs(results)}")
    if done:
        parts.append(f"{machine(done[0])}.\n")
    write_bytes(folder / f"{entry.name}.csv", forms.csv_of(entry, results).encode())
    write_bytes(folder / f"{entry.name}.md", "\n".join(filter(None, parts)).encode())
    return folder / f"{entry.name}.md"


def write_index(outcomes: Sequence[tuple[Entry, Sequence[Result]]], scale: str, folder: Path) -> Path:
    """Writes the index, one linked line per entry."""
    lines = []
    for entry, results in outcomes:
        done = len(summaries(result.outcome for result in results))
        lines.append([f"[{entry.title}]({entry.name}/{entry.name}.md)", f"{done}/{len(results)}", entry.finds])
    table = markdown(["", "runs", "the paper finds"], lines)
    text = f"# The paper's tables and figures, scale {scale}\n\n{table}"
    write_bytes(folder / INDEX, text.encode())
    return folder / INDEX


_NOTE = (
    "Values are mean ± standard deviation over seeds; all teachers have seed 0. Last: of the last epoch. Best: of "
    "the metric's best epoch on the test images, as in the paper; a student that was trained on the data has its "
    "last values there. Loyalty is computed as in the released code. Each run is in `../cells/<folder>`, its "
    "output in `<folder>.log` beside it."
)


def _runs(results: Sequence[Result]) -> str:
    lines = []
    for run, outcome in results:
        command = shlex.join(["python", "-m", "cudfkd_jax.main", *outcome.cell.arguments])
        lines.append([run.name.replace("|", "·"), outcome.cell.folder.name, f"`{command}`"])
    return markdown(["run", "folder", "command"], lines)


def _too_small(text: str) -> str:
    return f" Too small for the whole effect: {text}" if text else ""
