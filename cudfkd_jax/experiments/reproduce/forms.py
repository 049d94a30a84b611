"""Tables and pictures of an entry, with our numbers beside the paper's."""

from collections.abc import Callable, Sequence

from cudfkd_jax.experiments.outcomes import COLUMNS, csv_text
from cudfkd_jax.experiments.reproduce import panels, recorded, scores
from cudfkd_jax.experiments.reproduce.entry import Entry, Setting
from cudfkd_jax.experiments.reproduce.jobs import Result
from cudfkd_jax.experiments.reproduce.results import BEST, Rendered

_CSV = (*COLUMNS, *BEST[1:])


FORMS: dict[str, Callable[[Entry, Setting, Sequence[Result]], Rendered]] = {
    "scores": scores.scores,
    "comparison": scores.comparison,
    "stability": scores.stability,
    "bars": panels.bars,
    "changes": panels.changes,
    "heat": panels.heat_maps,
    "convergence": recorded.convergence,
    "curves": recorded.curves,
    "progress": recorded.progress,
    "loyalty": recorded.loyalties,
    "difficulty": recorded.difficulty,
}


def render(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Renders the available results; missing runs leave gaps."""
    return FORMS[setting.form or entry.form](entry, setting, results)


def csv_of(entry: Entry, results: Sequence[Result]) -> str:
    """Returns one unrounded CSV line per run."""
    heading = ["block", entry.axes[0], entry.axes[1] or "column", "seed", "folder"]
    keys = [(r.run.block, r.run.row, r.run.column, r.run.seed, r.outcome.cell.folder.name) for r in results]
    return csv_text(heading, [result.outcome for result in results], keys, _CSV)
