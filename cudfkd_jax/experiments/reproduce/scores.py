"""Tables II to V."""

from collections.abc import Sequence

from cudfkd_jax.experiments import paper_numbers
from cudfkd_jax.experiments.outcomes import COLUMNS, Column, known, markdown, mean_and_deviation, row
from cudfkd_jax.experiments.reproduce.entry import Entry, Setting, label
from cudfkd_jax.experiments.reproduce.jobs import Result
from cudfkd_jax.experiments.reproduce.results import ACC1, BEST, Rendered, distilled, grouped, outcomes_of

_SCORES = (ACC1, *BEST)
_SHOWN = {column.heading for column in _SCORES}


def scores(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Renders Tables II to IV: accuracy, agreement and loyalty by method."""
    return _by_method(setting, results, _SCORES)


def comparison(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Renders Tables II to IV with the metrics of Table V and Eq. 16: loyalty, stability, time and memory."""
    measured = [column for column in COLUMNS if column.heading not in _SHOWN]
    return _by_method(setting, results, [*_SCORES, *known(measured, outcomes_of(results))])


def _by_method(setting: Setting, results: Sequence[Result], columns: Sequence[Column]) -> Rendered:
    tables = {}
    for block, found in grouped(results, "block").items():
        pair = setting.beside.get(block)
        teacher = [*_teacher(found), *[""] * (len(columns) - len(_SCORES))]
        lines = [["teacher", "", *teacher, *_papers(pair, "teacher")]]
        for name, of_row in grouped(found, "row").items():
            lines.append([label(name), *row(columns, outcomes_of(of_row)), *_papers(pair, name)])
        heading = ["", "runs", *(column.heading for column in columns)]
        heading += [f"paper's {each}" for each in ("acc@1 %", "agree@1 %", "loyalty")] if pair else []
        tables[_title(block, pair)] = markdown(heading, lines)
    return Rendered(tables)


def stability(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Renders Table V: stability of the accuracy, memory and time by method."""
    columns = [column for column in COLUMNS if column.heading.split()[0] in ("stability", "wall", "peak")]
    columns.insert(2, BEST[0])
    heading = ["", "runs", *(column.heading for column in columns)]
    heading += [f"paper's {each}" for each in ("mean %", "variance", "best %", "memory GB", "hours")]
    tables = {}
    for block, found in grouped(results, "block").items():
        pair = setting.beside[block]
        lines: list[list[str]] = []
        for name, of_row in grouped(found, "row").items():
            papers = paper_numbers.stability(*pair, name) or ()
            text = ["" if value is None else f"{value:g}" for value in papers] or [""] * 5
            lines.append([label(name), *row(columns, outcomes_of(of_row)), *text])
        tables[_title(block, pair)] = markdown(heading, lines)
    return Rendered(tables)


def _title(block: str, pair: paper_numbers.Pair | None) -> str:
    if pair is None:
        return block
    return f"{block}; the paper's values are of {pair.dataset}, {pair.teacher} → {pair.student}"


def _teacher(results: Sequence[Result]) -> list[str]:
    """Returns the teacher's row of Tables II to IV."""
    found = [s["teacher"]["acc1"] for s in distilled(results) if "acc1" in s["teacher"]]
    return [mean_and_deviation(found[:1], 2), "", "100.00", "1.0000"]


def _papers(pair: paper_numbers.Pair | None, name: str) -> list[str]:
    if pair is None:
        return []
    found = paper_numbers.scores(*pair, name)
    digits = zip(found or (None,) * 3, (2, 2, 4), strict=True)
    return ["" if value is None else f"{value:.{n}f}" for value, n in digits]
