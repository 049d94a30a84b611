"""The figures of a report: curves of one or several runs, and histograms of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cudfkd_jax.report import plot
from cudfkd_jax.report.plot import Line, Picture
from cudfkd_jax.report.read import Run, is_finite, is_number, printable

_PANEL, _MARGIN = 1.15, 0.45  # inches
_CHOSEN = 4  # epochs per histogram
_NAMED = 20  # maximum number of classes with separate places on the axis
_ACCURACY = {"acc1": "acc@1", "agree1": "agree@1", "agree1_synthetic": "agree@1, synthetic"}
_LOYALTY = {
    "loyalty": "loyalty (Eq. 16)",
    "loyalty_released": "loyalty (released code)",
    "loyalty_synthetic": "loyalty, synthetic",
    "loyalty_released_synthetic": "loyalty (released code), synthetic",
}
_CURRICULUM = {
    "alpha_adv": "α_adv(t), weight of the adversarial term",
    "lambda": "λ(t), age parameter",
    "mean_v": "mean v*, weight of an image",
    "share_v_below_half": "share of images with v* < 0.5",
    "difficulty": "difficulty, mean loss of an image",
    "regulariser_g": "regulariser g(λ, v*)",
}
CONVERGENCE = {
    "majorised": "F(L′) ≤ Q: it bounds",
    "minimised": "Q ≤ F(L): the step goes down",
    "descended": "F(L′) ≤ F(L): so does the objective",
}
_NOT_DRAWN = {"epoch", "step", "acc5", "seconds", "evaluation_seconds", "images_per_s"}


def of_run(run: Run) -> list[Picture]:
    """Draws all figures for which a run has data."""
    chosen = choose_epochs(list(run.observations))
    made = [
        *curves([run]),
        difficulty_histogram(run, chosen),
        _loyalty_histogram(run),
        _class_accuracy(run),
    ]
    return [each for each in made if each]


def curves(runs: Sequence[Run]) -> list[Picture]:
    """Draws all metrics over the epochs, with one colour per run if there are several (Fig. 3 and 4)."""
    recorded = {key for run in runs for record in run.records for key in record if is_number(record[key])}
    losses = sorted(key for key in recorded if "loss" in key)
    others = sorted(recorded - {*losses, *_ACCURACY, *_LOYALTY, *_CURRICULUM, *CONVERGENCE} - _NOT_DRAWN)
    made = [
        accuracy(runs),
        _together(runs, "loyalty", "Loyalty", _LOYALTY, "loyalty", "How close the student's probabilities "
                  "are to the teacher's; 1 is equal."),
        convergence(runs),
        _panels(runs, "losses", "Losses, term by term", _spaced(losses),
                "Mean over the steps of an epoch, each term before its weight; divergences in nats."),
        _panels(runs, "curriculum", "Curriculum", _CURRICULUM, "Mean over the student steps of an epoch "
                "(α_adv: over the synthesis steps)."),
        _panels(runs, "training", "Training", _spaced(others),
                "What else the run recorded, mean over an epoch."),
    ]  # fmt: skip
    return [each for each in made if each]


def accuracy(runs: Sequence[Run]) -> Picture | None:
    """Draws accuracy and agreement over the epochs."""
    return _together(runs, "accuracy", "Accuracy", _ACCURACY, "% of the images", "The student after each epoch.")


def accuracy_by_cost(runs: Sequence[Run]) -> Picture | None:
    """Draws accuracy over student steps and over minutes, the costs that differ by method; None without any."""
    points = {run.name: _costs(run) for run in runs}
    if not any(points.values()):
        return None
    teacher = _teacher_accuracy(runs)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, 1, sharey=True)
        for place, (axes, label) in enumerate(zip(panels, ("student steps", "minutes"), strict=True)):
            lines = [Line(name, [p[place] for p in of], [p[-1] for p in of]) for name, of in points.items() if of]
            plot.curves(axes, lines)
            if teacher is not None:
                _teacher_line(axes, teacher)
            axes.set(xlabel=label, ylabel="acc@1, %")
        plot.legend_above(figure, panels[0])

    caption = "The student as it is trained. Minutes hold synthesis and the measuring on the test images too."
    return plot.picture("accuracy", "Accuracy by steps and by minutes", caption, draw, height=5.2)


def _costs(run: Run) -> list[tuple[float, float, float]]:
    """Returns student steps, minutes and accuracy for each evaluated epoch."""
    points, seconds = [], 0.0
    for record in run.records:
        seconds += sum(record[key] for key in ("seconds", "evaluation_seconds") if is_finite(record.get(key)))
        if is_finite(record.get("acc1")) and is_finite(record.get("step")):
            points.append((record["step"], seconds / 60, record["acc1"]))
    return points


def loyalty(runs: Sequence[Run]) -> Picture | None:
    """Draws the distribution of loyalty over the test images, with several runs overlaid (Fig. 2)."""
    found: dict[str, list[Line]] = {}
    for key in ("loyalty", "loyalty_released"):
        of_key = [Line(run.name, line.x, line.y) for run in runs for line in _loyalty_lines(run, (key,))]
        found |= {_LOYALTY[key]: of_key} if of_key else {}
    if not found:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, lines) in zip(panels, found.items(), strict=True):
            plot.curves(axes, lines, steps=True)
            axes.set_title(label, loc="left")
            axes.set(ylabel="% of the test images", xlim=(0, 1))
        panels[-1].set_xlabel("loyalty of an image")
        plot.legend_above(figure, panels[0])

    caption = "The last students against the teacher."
    return plot.picture("loyalty", "Loyalty over the test images", caption, draw, height=2.4 * len(found) + 0.6)


def convergence(runs: Sequence[Run]) -> Picture | None:
    """Draws how often the inequality of the convergence argument held (Eq. 8); None if not recorded."""
    return _together(
        runs,
        "convergence",
        "Majorise–minimise inequality (Eq. 8)",
        CONVERGENCE,
        "% of the updates",
        "Of the student's steps after each epoch, those with the inequality on a fixed batch of images that they "
        "were not made on; L before, L′ after a step.",
    )


def _spaced(keys: Sequence[str]) -> dict[str, str]:
    return {key: printable(key.replace("_", " ")) for key in keys}


def choose_epochs(epochs: Sequence[int], count: int = _CHOSEN) -> list[int]:
    """Returns at most `count` epochs: the first, the last, and others evenly spaced between them."""
    if len(epochs) <= count:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (count - 1))] for i in range(count)]


def _together(
    runs: Sequence[Run], name: str, title: str, keys: Mapping[str, str], unit: str, caption: str
) -> Picture | None:
    """Draws one panel per metric for several runs, and a single panel with all metrics for one run."""
    if len(runs) > 1:
        return _panels(runs, name, title, keys, caption, unit=unit)
    (run,) = runs
    lines = [Line(label, *run.series(key)) for key, label in keys.items()]
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    teacher = _teacher_accuracy(runs) if name == "accuracy" else None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plot.curves(axes, lines)
        if teacher is not None:
            _teacher_line(axes, teacher)
        axes.set_ylabel(unit)
        plot.epochs_below(axes)
        plot.legend_above(figure, axes)

    return plot.picture(name, title, caption, draw)


def _panels(
    runs: Sequence[Run], name: str, title: str, keys: Mapping[str, str], caption: str, *, unit: str = ""
) -> Picture | None:
    """Draws one panel per metric, stacked over a shared epoch axis, with one curve per run."""
    found = {label: [Line(run.name, *run.series(key)) for run in runs] for key, label in keys.items()}
    found = {label: lines for label, lines in found.items() if any(line.x for line in lines)}
    if not found:
        return None
    teacher = _teacher_accuracy(runs)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, lines) in zip(panels, found.items(), strict=True):
            plot.curves(axes, lines)
            if teacher is not None and label == _ACCURACY["acc1"]:
                _teacher_line(axes, teacher)
            axes.set_title(f"{label}, {unit}" if unit and unit != label.split(" ")[0] else label, loc="left")
        plot.epochs_below(panels[-1])
        if len(runs) > 1:
            plot.legend_above(figure, panels[0])

    rows = -(-len(runs) // 2) if len(runs) > 1 else 0
    panel = 2.2 if unit else _PANEL
    return plot.picture(name, title, caption, draw, height=panel * len(found) + _MARGIN + 0.2 * rows)


def _teacher_line(axes: Axes, accuracy: float) -> None:
    axes.axhline(accuracy, color="#888888", linewidth=1, label=f"teacher, acc@1 {accuracy:.2f} %")


def difficulty_histogram(run: Run, epochs: Sequence[int]) -> Picture | None:
    """Draws the distribution of difficulty over synthetic images after these epochs (Fig. 5a)."""
    values = {e: np.array(run.observations[e]["synthetic"]["difficulty"], float) for e in epochs}
    values = {e: v[np.isfinite(v) & (v > 0)] for e, v in values.items()}
    values = {e: v for e, v in values.items() if v.size}
    if not values:
        return None
    everything = np.concatenate(list(values.values()))
    low, high = np.log10(everything.min()), np.log10(everything.max())
    edges = np.logspace(low - 0.01, high + 0.01, 41)
    loss = run.observations[next(iter(values))]["synthetic"]["loss"]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(values), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for index, (axes, (epoch, found)) in enumerate(zip(panels, values.items(), strict=True)):
            share = 100 * np.histogram(found, edges)[0] / found.size
            axes.stairs(share, edges, fill=True, color=plot.COLOURS[index])
            axes.set_title(f"epoch {epoch}, median {np.median(found):.3g}", loc="left")
            axes.set_ylabel("% of images")
        plot.logarithmic(panels[-1])
        panels[-1].set_xlabel(f"difficulty of an image ({loss}, D of Eq. 6)")

    count = max(v.size for v in values.values())
    caption = (
        f"Loss, where above 0, of each of {count} synthetic images that the student was not trained on, both "
        "networks in evaluation mode (Fig. 5a)."
    )
    height = _PANEL * len(values) + _MARGIN
    return plot.picture("difficulty", "Difficulty of single images", caption, draw, height=height)


def _loyalty_histogram(run: Run) -> Picture | None:
    epoch, _ = _last_test(run)
    lines = _loyalty_lines(run, ("loyalty", "loyalty_released"))
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plot.curves(axes, lines, steps=True)
        axes.set(xlabel="loyalty of an image", ylabel="% of the test images", xlim=(0, 1))
        plot.legend_above(figure, axes)

    caption = f"Student of epoch {epoch} against the teacher, over the test images (Fig. 2)."
    return plot.picture("loyalty_histogram", "Loyalty over the test images", caption, draw)


def _loyalty_lines(run: Run, keys: Sequence[str]) -> list[Line]:
    _, test = _last_test(run)
    lines = []
    for key in keys if test else ():
        counts = np.array(test[key], float)
        total = counts.sum()
        if np.isfinite(total) and total > 0:
            centres = (np.arange(counts.size) + 0.5) / counts.size
            lines.append(Line(_LOYALTY[key], centres.tolist(), (100 * counts / total).tolist()))
    return lines


def _class_accuracy(run: Run) -> Picture | None:
    epoch, test = _last_test(run)
    images = np.array(test["images"], float) if test else np.zeros(0)
    if not (np.isfinite(images) & (images > 0)).any():
        return None
    share = {
        who: 100 * np.array(test[who], float) / np.where(images > 0, images, np.nan)
        for who in ("student", "teacher")
    }
    few = images.size <= _NAMED
    places = np.arange(images.size)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (who, values) in enumerate(share.items()):
            look: dict[str, Any] = {"linestyle": "", "marker": "oD"[index], "markersize": 8 - 4 * index}
            line = look if few else {"linestyle": plot.DASHES[index]}
            axes.plot(places, values if few else np.sort(values), label=who, color=plot.COLOURS[index], **line)
        axes.set(ylabel="acc@1 in the class, %", xlabel="class" if few else "classes, each curve in its own order")
        if few:
            axes.set_xticks(places)
        plot.legend_above(figure, axes)

    worst = int(np.nanargmin(share["student"]))
    caption = (
        f"Student of epoch {epoch}; its lowest is class {worst} with {share['student'][worst]:.1f} % "
        f"(teacher {share['teacher'][worst]:.1f} %)."
    )
    return plot.picture("classes", "Accuracy by class", caption, draw)


def _last_test(run: Run) -> tuple[int, dict[str, Any]]:
    return next(((e, o["test"]) for e, o in sorted(run.observations.items(), reverse=True) if o["test"]), (0, {}))


def _teacher_accuracy(runs: Sequence[Run]) -> float | None:
    """Returns the teacher's accuracy if all runs share it; None if it differs or was not measured."""
    values = [run.teacher.get("acc1") for run in runs]
    return float(values[0]) if is_finite(values[0]) and values.count(values[0]) == len(values) else None
