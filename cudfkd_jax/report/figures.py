"""The figures of a report: curves of one or several runs, and histograms of one run."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cudfkd_jax.report import plot
from cudfkd_jax.report.plot import Line, Panel, Picture
from cudfkd_jax.report.read import Run, is_finite, is_number, printable

_TALL, _SINGLE = 2.2, 2.55  # inches, panels of the test metrics, and one without others
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
    "learning_rate": "learning rate of the student",
}
_PURPOSE = {  # what each schedule is for, and what its values mean
    "alpha_adv": "Makes the images harder: its term rewards images on which student and teacher differ.",
    "lambda": "Admits harder images: one with a loss well below λ counts in full, one well above hardly counts.",
    "mean_v": "Shows how much of a batch the student learns from: 1 is all of it, and then λ holds nothing back.",
    "share_v_below_half": "The images that λ holds back at that time.",
    "difficulty": "Rises where images become harder faster than the student learns them.",
    "regulariser_g": "The part of Eq. 6 that keeps v* from becoming 0.",
    "learning_rate": "Takes large steps while the images change most, and small ones to settle at the end.",
}
_EACH_EPOCH = "The student after each epoch."
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
        _panels(runs, "curriculum", "Curriculum and schedules", _CURRICULUM, "From easy to hard: what sets the "
                "difficulty of the images and what the student does with them, mean over the student steps of an "
                "epoch (α_adv: over the synthesis steps).", captions=_PURPOSE),
        _panels(runs, "training", "Training", _spaced(others),
                "What else the run recorded, mean over an epoch."),
    ]  # fmt: skip
    return [each for each in made if each]


def accuracy(runs: Sequence[Run]) -> Picture | None:
    """Draws accuracy and agreement over the epochs."""
    return _together(runs, "accuracy", "Accuracy", _ACCURACY, "% of the images", _EACH_EPOCH)


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
    """Draws one panel per metric for several runs, and a single panel with all metrics for one run.

    Each panel whose curves saturate is followed by one of their part of the axis alone.
    """
    if len(runs) > 1:
        return _panels(runs, name, title, keys, caption, unit=unit)
    (run,) = runs
    lines = [Line(label, *run.series(key)) for key, label in keys.items()]
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    heading = title if unit == name else f"{title}, {unit}"
    panels = _zoomed(heading, lines, _teacher_accuracy(runs) if name == "accuracy" else None, caption, legend=True)
    return plot.stacked(name, title, caption, panels, plot.epochs_below, panel_height=_TALL)


def _panels(
    runs: Sequence[Run],
    name: str,
    title: str,
    keys: Mapping[str, str],
    caption: str,
    *,
    unit: str = "",
    captions: Mapping[str, str] | None = None,
) -> Picture | None:
    """Draws panels for each metric, stacked over a shared epoch axis, with one curve per run."""
    found = {key: [Line(run.name, *run.series(key)) for run in runs] for key in keys}
    found = {key: lines for key, lines in found.items() if any(line.x for line in lines)}
    if not found:
        return None
    panels = []
    for key, lines in found.items():
        label, explained = keys[key], (captions or {}).get(key, "")
        if unit:
            heading = label if unit == label.split(" ")[0] else f"{label}, {unit}"
            teacher = _teacher_accuracy(runs) if key == "acc1" else None
            panels += _zoomed(heading, lines, teacher, explained, legend=False)
        else:
            falls = key == "difficulty" or key.endswith(("loss", "norm"))
            panels.append(_curves(label, lines, explained, logarithmic=falls and plot.has_fallen(lines)))
    return plot.stacked(
        name,
        title,
        caption,
        panels,
        plot.epochs_below,
        legend=len(runs) > 1,
        **({"panel_height": _TALL} if unit else {}),
    )


def _curves(label: str, lines: Sequence[Line], caption: str, *, logarithmic: bool) -> Panel:
    """Returns a panel of curves."""

    def draw(axes: Axes) -> None:
        plot.curves(axes, lines)
        if logarithmic:
            plot.logarithmic(axes, "y")

    return Panel(f"{label}, logarithmic" if logarithmic else label, draw, caption)


def _zoomed(
    heading: str, lines: Sequence[Line], teacher: float | None, caption: str, *, legend: bool
) -> list[Panel]:
    """Returns a panel of curves and, if they saturate, one of the part of the axis in which they do."""

    def draw(axes: Axes, limits: tuple[float, float] | None = None) -> None:
        plot.curves(axes, lines)
        if teacher is not None:
            _teacher_line(axes, teacher)
        if limits:
            axes.set_ylim(limits)

    panels = [Panel(heading, draw, caption, legend)]
    if limits := plot.zoom(lines, *([] if teacher is None else [teacher])):
        low, high = limits
        digits = max(0, 1 - int(np.floor(np.log10(high - low))))
        points = [point for line in lines for point in zip(line.x, line.y, strict=True)]
        outside = sorted({epoch for epoch, value in points if not low <= value <= high})
        text = f"The axis shows {low:.{digits}f} to {high:.{digits}f} alone, without {_epochs(outside)}."
        panels.append(Panel(f"{heading}, zoomed", functools.partial(draw, limits=limits), text, legend))
    return panels


def _epochs(epochs: Sequence[float]) -> str:
    """Describes epochs in words."""
    first, last = epochs[0], epochs[-1]
    if len(epochs) == 1:
        return f"epoch {first:.0f}"
    return f"epochs {first:.0f} to {last:.0f}" if len(epochs) == last - first + 1 else f"{len(epochs)} epochs"


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
    shares = {e: 100 * np.histogram(v, edges)[0] / v.size for e, v in values.items()}
    top = 1.05 * max(share.max() for share in shares.values())

    def panel(index: int, epoch: int) -> Panel:
        def draw(axes: Axes) -> None:
            axes.stairs(shares[epoch], edges, fill=True, color=plot.COLOURS[index])
            axes.set(ylim=(0, top), ylabel="% of images")

        title = f"Difficulty, epoch {epoch}, median {np.median(values[epoch]):.3g}"
        return Panel(title, draw, "" if index else caption)

    def below(axes: Axes) -> None:
        axes.set_xlim(edges[0], edges[-1])
        plot.logarithmic(axes)
        axes.set_xlabel(f"difficulty of an image ({loss}, D of Eq. 6)")

    count = max(v.size for v in values.values())
    caption = (
        f"Loss, where above 0, of each of {count} synthetic images that the student was not trained on, both "
        "networks in evaluation mode (Fig. 5a)."
    )
    panels = [panel(index, epoch) for index, epoch in enumerate(values)]
    return plot.stacked("difficulty", "Difficulty of single images", caption, panels, below)


def _loyalty_histogram(run: Run) -> Picture | None:
    epoch, _ = _last_test(run)
    lines = _loyalty_lines(run, ("loyalty", "loyalty_released"))
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        plot.curves(axes, lines, steps=True)
        axes.set(ylabel="% of the test images", xlim=(0, 1))

    title = "Loyalty over the test images"
    caption = f"Student of epoch {epoch} against the teacher, over the test images (Fig. 2)."
    below = functools.partial(Axes.set_xlabel, xlabel="loyalty of an image")
    return plot.stacked("loyalty_histogram", title, caption, [Panel(title, draw, caption, legend=True)], below,
                        panel_height=_SINGLE)  # fmt: skip


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

    def draw(axes: Axes) -> None:
        for index, (who, values) in enumerate(share.items()):
            look: dict[str, Any] = {"linestyle": "", "marker": "oD"[index], "markersize": 8 - 4 * index}
            line = look if few else {"linestyle": plot.DASHES[index]}
            axes.plot(places, values if few else np.sort(values), label=who, color=plot.COLOURS[index], **line)
        axes.set_ylabel("acc@1 in the class, %")
        if few:
            axes.set_xticks(places)

    worst = int(np.nanargmin(share["student"]))
    caption = (
        f"Student of epoch {epoch}; its lowest is class {worst} with {share['student'][worst]:.1f} % "
        f"(teacher {share['teacher'][worst]:.1f} %)."
    )
    below = functools.partial(Axes.set_xlabel, xlabel="class" if few else "classes, each curve in its own order")
    panel = Panel("Accuracy by class", draw, caption, legend=True)
    return plot.stacked("classes", "Accuracy by class", caption, [panel], below, panel_height=_SINGLE)


def _last_test(run: Run) -> tuple[int, dict[str, Any]]:
    return next(((e, o["test"]) for e, o in sorted(run.observations.items(), reverse=True) if o["test"]), (0, {}))


def _teacher_accuracy(runs: Sequence[Run]) -> float | None:
    """Returns the teacher's accuracy if all runs share it; None if it differs or was not measured."""
    values = [run.teacher.get("acc1") for run in runs]
    return float(values[0]) if is_finite(values[0]) and values.count(values[0]) == len(values) else None
