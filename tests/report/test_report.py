"""Tests of a run's report: its contents, the states of a run, and that it is self-contained."""

import base64
import html.parser
import io
import json
import math
import re
import runpy
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import rel_entr, softmax

from cudfkd_jax import main, report
from cudfkd_jax.config import access, defaults, loading
from cudfkd_jax.evaluation import observations, samples
from cudfkd_jax.objectives import losses
from cudfkd_jax.report import page as pages
from cudfkd_jax.report import plot, tables
from cudfkd_jax.report.read import read
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.errors import UserError

_EPOCHS = 6
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
_EMPTY = '<svg viewBox="0 0 1 1"></svg>'
_VOID = {"meta", "link", "img", "br"}
_EVIL = '<script>alert("x")</script>&'
_UNPRINTABLE = "\0\x1b\ud800\n"


class _Page(html.parser.HTMLParser):
    """Collects a page's references, elements and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.markup = path.read_text(encoding="utf-8")
        self.references, self.tags, self.text, self._open = [], [], "", []
        self.feed(self.markup)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.references.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _record(epoch: int, **more) -> dict:
    terms = {f"{name}_loss": 3.0 / epoch for name in ("adversarial", "class", "synthesis", "student")}
    terms["bn_loss"] = 1000.0 / 4**epoch
    curriculum = {"alpha_adv": 0.1 * epoch, "lambda": 2 + 0.01 * epoch, "mean_v": 0.9, "difficulty": 1 / epoch}
    measured = {"acc1": 90 + epoch, "agree1": 91 + epoch, "loyalty": 0.9, "loyalty_released": 0.7}
    times = {"seconds": 2.0, "evaluation_seconds": 0.5, "images_per_s": 100.0}
    return {"epoch": epoch, "step": 10 * epoch, **terms, **curriculum, **measured, **times, **more}


def _write_records(folder: Path, records) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _make_run(folder: Path, *, epochs: int = _EPOCHS, **settings) -> Path:
    """Writes a completed run of six epochs like the stages, without the networks."""
    config = access.flatten(defaults.get_config()) | {"distill.epochs": _EPOCHS, **settings}
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"results": {}, "config": config}))
    _write_records(folder, map(_record, range(1, epochs + 1)))
    random = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        teacher, student = random.normal(size=(2, 60, 10)) * 3
        images, labels = random.random((60, 8, 8, 1)), random.integers(0, 10, 60)
        samples.save_grid(folder / f"samples/epoch_{epoch:04d}.png", images)
        observations.save_classes(folder / f"samples/classes_{epoch:04d}.png", images, teacher)
        synthetic = observations.of_synthetic_images(images, teacher, student, losses.l1_distance, loss="l1")
        test = observations.of_test_images(teacher, student, labels)
        observations.save(observations.path_of(folder, epoch), epoch, synthetic, test)
    network = {"arch": "resnet34", "parameters": 123456, "acc1": 95.5}
    summary = {"teacher": network, "student": network, "wall_s": 15.0, "images_per_s": 100.0}
    if epochs == _EPOCHS:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list[str]:
    """How the names of the figures begin that are drawn, which takes most of the time of a report; "" for all."""
    names: list[str] = []
    picture, inline = plot.picture, plot.inline

    def only_named(name, title, caption, draw, **size):
        if name.startswith(tuple(names)):
            return picture(name, title, caption, draw, **size)
        return plot.Picture(name, title, caption, _EMPTY.encode(), b"")

    monkeypatch.setattr(plot, "picture", only_named)
    monkeypatch.setattr(
        plot, "inline", lambda name, draw: inline(name, draw) if name.startswith(tuple(names)) else _EMPTY
    )
    return names


@pytest.fixture(scope="module", name="finished")
def _finished(tmp_path_factory):
    return _make_run(tmp_path_factory.mktemp("finished") / "made")


@pytest.fixture
def made(finished, tmp_path):
    """A completed run of six epochs, free to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "made"))


def _check_pictures(page: _Page) -> None:
    """Checks that the page refers to no other file and that every picture can be decoded."""
    data = [r for r in page.references if r.startswith("data:image/png;base64,")]
    assert set(page.references) - {*data, "data:,"} == {r for r in page.references if r.startswith("#")}
    assert not re.search(r"url\((?!#)|@import|<script|<iframe|http-equiv=.refresh", page.markup)
    assert len(data) == page.tags.count("img")
    assert "mathdefault" not in page.markup  # a formula drawn as text
    for each in data:
        with Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2], validate=True))) as picture:
            picture.load()
    drawn = re.findall(r"<svg .*?</svg>", page.markup, re.DOTALL)
    assert len(drawn) == page.tags.count("svg")
    for each in drawn:
        ids = {element.get("id") for element in ET.fromstring(each).iter()}
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', each)) <= ids
    every_id = re.findall(r' id="([^"]+)"', page.markup)
    assert len(every_id) == len(set(every_id))


def _report(folder: Path) -> _Page:
    page = _Page(report.write_report(folder))
    _check_pictures(page)
    return page


# Contents


def test_a_finished_run_has_every_part(drawn, made):
    drawn.append("")
    page = _report(made)
    figures = ("accuracy", "loyalty", "losses", "curriculum", "difficulty", "loyalty_histogram", "classes")
    for name in figures:
        assert (made / f"report/{name}.svg").exists()
        ET.parse(made / f"report/{name}.svg")
        with Image.open(made / f"report/{name}.png") as picture:
            picture.load()
    assert (
        page.tags.count("svg") == 17
    )  # a panel each: 5 losses, 4 of the curriculum, 4 epochs' difficulty, others
    assert page.tags.count("img") == 4  # early and late, as drawn and by class
    for text in (
        "acc@1 %",
        "96.00",
        "95.50",
        "α_adv(t)",
        "λ(t)",
        "bn loss",
        "epoch 6",
        "Fig. 5a",
        "curriculum.lambda_0",
    ):
        assert text in page.text
    assert page.tags.count("ul") == 0  # no remark about its state


def test_the_classes_are_named_in_their_order(made):
    path = made / "summary.json"
    held = json.loads(path.read_text())
    assert "0 ant" not in _report(made).text
    for classes, shown in ((["ant", "<b>bee</b>"], True), ([], False), ("ant", False), ({"ant": 1}, False)):
        path.write_text(json.dumps(held | {"classes": classes}))
        assert ("0 ant, 1 <b>bee</b>" in _report(made).text) == shown


def test_the_real_run_ends_with_a_report(finished_run):
    """Checks too that the recorded single images agree with the metrics."""
    page = _Page(finished_run / "report.html")
    _check_pictures(page)
    assert page.tags.count("ul") == 1 and "The student is at chance" in page.text  # the run is too short to learn
    summary = json.loads((finished_run / "summary.json").read_text())
    found = json.loads(observations.path_of(finished_run, summary["epochs"]).read_text())
    test = found["test"]
    for role, key in (("student", "acc1_last"), ("teacher", "acc1")):
        share = 100 * sum(test[role]) / sum(test["images"])
        assert share == pytest.approx(summary[role][key], abs=1e-3)
    for key in ("loyalty", "loyalty_released"):
        counts = np.array(test[key])
        assert counts.sum() == sum(test["images"])
        mean = (counts * (np.arange(counts.size) + 0.5)).sum() / counts.size / counts.sum()
        assert mean == pytest.approx(summary["student"][key], abs=0.5 / counts.size)
    assert len(found["synthetic"]["difficulty"]) == sum(found["synthetic"]["classes"]) > 100
    assert min(found["synthetic"]["difficulty"]) >= 0


def test_the_configuration_file_repeats_the_run(finished_run):
    """Covers tuples, which JSON does not have."""
    config = runpy.run_path(str(finished_run / "report/config.py"))["get_config"]()
    assert access.flatten(config) == access.flatten(loading.read_config(finished_run))
    assert "--config=" in _Page(finished_run / "report.html").text


def test_a_run_that_was_fitted_into_a_budget_is_repeated_at_its_length(made):
    held = json.loads((made / "config.json").read_text())
    held["config"] |= {"distill.budget": "2h", "distill.epochs": 7}
    (made / "config.json").write_text(json.dumps(held))
    _report(made)
    config = runpy.run_path(str(made / "report/config.py"))["get_config"]()
    assert (config.distill.budget, config.distill.epochs) == ("", 7)


def test_without_images_a_pytorch_module_is_a_teacher_from_the_command_line(made):
    held = json.loads((made / "config.json").read_text())
    held["config"] |= {"data.source": "none", "teacher.checkpoint": ""}
    for module, python in (("torch:package:make", False), ("", True)):
        held["config"]["teacher.module"] = module
        (made / "config.json").write_text(json.dumps(held))
        assert ("It was started from Python" in _report(made).text) == python


def test_an_older_run_without_observations_says_what_is_missing(made):
    shutil.rmtree(made / "report")
    shutil.rmtree(made / "samples")
    page = _report(made)
    assert page.tags.count("li") == 5
    for text in ("No difficulty of single images", "No loyalty of single test images", "No accuracy by class"):
        assert text in page.text


def test_the_majorise_minimise_curve(drawn, made):
    drawn.append("convergence")
    counted = {"latent_objective": 2.0, "majorised": 100.0, "minimised": 80.0, "descended": 90.0}
    assert "Eq. 8" not in _report(made).text
    _write_records(made, [_record(epoch, **counted) for epoch in (1, 2)])
    page = _report(made)
    assert "Majorise–minimise inequality (Eq. 8)" in page.text and "F(L′) ≤ Q: it bounds" in page.text


def test_the_best_student_is_one_student(made):
    """Not the best of each column, which no student has."""
    records = [_record(1, acc1=95.0, agree1=92.0), _record(2, acc1=93.0, agree1=99.0), _record(3, acc1=math.nan)]
    _write_records(made, records)
    heading, *rows = tables.results([read(made)])
    of = {label: dict(zip(heading, [label, *row], strict=True)) for label, *row in rows}
    assert list(of) == ["teacher", "student, epoch 3", "student_best, epoch 1"]
    assert of["student_best, epoch 1"]["agree@1 %"] == "92.00"
    _write_records(made, [{"epoch": 1, "step": 10, "agree1_synthetic": 90.0}])  # nothing to choose on
    assert [label for label, *_ in tables.results([read(made)])] == ["", "teacher", "student, epoch 1"]


def test_the_headline_is_of_the_last_student(made):
    summary = json.loads((made / "summary.json").read_text())
    summary["student"] = summary["student"] | {"parameters": 61728, "acc1_best": 99.0}
    (made / "summary.json").write_text(json.dumps(summary))
    text = _report(made).text
    assert "2.0× smaller" in text and "61,728 of 123,456 parameters" in text
    assert "100.5 % of the teacher's accuracy" in text and "student 96.00 %, teacher 95.50 %" in text


@pytest.mark.parametrize("changes", [{"summary": "{}"}, {"metrics": ""}])
def test_a_headline_of_what_is_known(made, changes):
    for name, content in changes.items():
        suffix = "json" if name == "summary" else "jsonl"
        (made / f"{name}.{suffix}").write_text(content)
    text = _report(made).text
    assert ("smaller" in text or "as large" in text) == ("metrics" in changes)
    assert ("% agreement" in text) == ("summary" in changes)


def test_curves_that_saturate_are_shown_again_where_they_do(drawn, made):
    assert "zoomed" not in _report(made).text
    drawn.append("accuracy")
    curve = [10, 40, 80, 95, 97, 98, 98.5, 98.8, 99, 99.1]
    _write_records(made, [_record(epoch, acc1=y, agree1=y + 0.2) for epoch, y in enumerate(curve, 1)])
    text = _report(made).text
    assert "Accuracy, % of the images, zoomed" in text
    assert "The axis shows 95.2 to 99.6 alone, without epochs 1 to 4." in text  # the teacher's 95.5 belongs to it


def test_limits_of_a_zoom():
    curve = [10.0, 80.0, 90.0, 95.0, 97.0, 98.0]
    line = plot.Line("a", [1, 2, 3, 4, 5, 6], curve)
    low, high = plot.zoom([line])
    assert 90 < low < 95 and 98 < high < 99
    low, high = plot.zoom([line], 99.5)
    assert low < 95 and 99.5 < high < 101
    assert plot.zoom([plot.Line("linear", [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])]) is None
    assert plot.zoom([plot.Line("constant", [1, 2, 3, 4], [5, 5, 5, 5])]) is None
    assert plot.zoom([plot.Line("short", [1, 2, 3], [1, 9, 9.1])]) is None
    low, high = plot.zoom([plot.Line("flat", [1, 2, 3, 4], [0, 5, 5, 5])])
    assert low < 5 < high


def test_losses_that_fall_over_powers_of_ten_have_a_logarithmic_axis(made):
    """The complete page above has one, too."""
    _write_records(made, [_record(epoch, class_loss=epoch - 3) for epoch in range(1, 7)])
    text = _report(made).text
    assert "bn loss, logarithmic" in text and "class loss, logarithmic" not in text


def test_every_schedule_says_what_it_is_for(made):
    text = _report(made).text
    for part in ("Makes the images harder", "Admits harder images", "Shows how much of a batch"):
        assert part in text
    _write_records(made, [_record(epoch, learning_rate=0.1 / epoch) for epoch in (1, 2)])
    assert "learning rate of the student" in _report(made).text and "to settle at the end" in _report(made).text


@pytest.mark.parametrize("count", range(1, 13))
def test_descriptions_complete_the_rows(count):
    part = plot.Part("title", "", "<svg viewBox='0 0 1 1'></svg>")
    (classes,) = re.findall(r'class="about([^"]*)"', pages.figures("title", "text", [part] * count))
    two = 2 if "two" in classes else 1
    three = int(re.search(r"three(\d)", classes)[1])
    assert (count + two) % 2 == 0 and (count + three) % 3 == 0 and 1 <= three <= 3


def test_many_classes(drawn, made):
    drawn.append("classes")
    student, teacher = np.random.default_rng(0).integers(0, 6, (2, 100)).tolist()
    loyalty = {"loyalty": [500], "loyalty_released": [500]}
    test = {**loyalty, "images": [5] * 100, "student": student, "teacher": teacher}
    observations.save(observations.path_of(made, 6), 6, {"loss": "l1", "difficulty": [1.0], "classes": [1]}, test)
    assert "each curve in its own order" in _report(made).text


def test_text_from_files_is_escaped(drawn, made, tmp_path):
    drawn += ["losses", "training"]
    folder = _make_run(
        tmp_path / "<b>$x_1$&",
        **{"method": _EVIL, "data.name": _EVIL, "student.arch": _EVIL, "teacher.arch": _UNPRINTABLE},
    )
    summary = {"teacher": {"arch": _EVIL}, "versions": {_EVIL: _EVIL}, "devices": {"kind": _EVIL, "count": 1}}
    (folder / "summary.json").write_text(json.dumps(summary))
    _write_records(folder, [_record(1, **{f"{_EVIL}_loss": 1.0, _EVIL: 2.0, _UNPRINTABLE: 1.0})])
    page = _report(folder)
    assert "script" not in page.tags and "b" in page.tags
    assert page.text.count(_EVIL) >= 6
    drawn[:] = ["accuracy"]
    page = _Page(report.write_comparison([folder, made], tmp_path))
    _check_pictures(page)
    assert "script" not in page.tags and "<b>$x_1$&" in page.text


# Incomplete or damaged runs


def test_a_teacher_that_was_measured_before_the_first_epoch_is_drawn(drawn, tmp_path):
    drawn.append("accuracy")
    folder = _make_run(tmp_path / "going", epochs=3)
    observations.save_teacher(folder, {"arch": "resnet34", "parameters": 123456, "acc1": 95.5})
    assert "teacher, acc@1 95.50 %" in _report(folder).text


def test_a_run_in_progress(tmp_path):
    folder = _make_run(tmp_path / "going", epochs=3)
    with stages.workdir.lock(folder):
        assert "This run is still going: 3 of 6 epochs are finished." in _report(folder).text
    assert "This run was stopped before its end: 3 of 6 epochs are finished." in _report(folder).text


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_hardly_an_epoch(drawn, tmp_path, epochs):
    drawn += ["accuracy", "losses", "difficulty"]
    page = _report(_make_run(tmp_path / "short", epochs=epochs))
    assert (f"{epochs} of 6 epochs are finished" if epochs else "No epoch of 6 is finished") in page.text
    assert ("No losses have been recorded yet." in page.text) == (epochs == 0)


def test_a_truncated_line(made):
    path = made / "metrics.jsonl"
    path.write_text(path.read_text()[:-40])
    (made / "summary.json").unlink()
    page = _report(made)
    assert "metrics.jsonl is cut off or damaged in line 6; 5 whole epochs of it are shown." in page.text
    assert "95.00" in page.text


def test_numbers_that_are_not_finite(drawn, made):
    drawn += ["accuracy", "losses", "difficulty"]
    bad = {"bn_loss": math.nan, "acc1": math.inf, "student_loss": "text", "mean_v": None}
    _write_records(made, [_record(1), _record(2, **bad), _record(3, acc1=math.nan)])
    path = observations.path_of(made, 6)
    observation = json.loads(path.read_text())
    observation["synthetic"]["difficulty"][:3] = [math.nan, math.inf, -1.0]
    path.write_text(json.dumps(observation))
    page = _report(made)
    assert (
        "Not finite, and left out of the curves: bn_loss (first in epoch 2), acc1 (first in epoch 2)" in page.text
    )
    assert "not finite" in page.text and "91.00" in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b'{"teacher": '),
        ("samples/epoch_0006.png", b"\x89PNG\r\n\x1a\n no"),
        ("samples/classes_0006.png", b""),
        ("report/data/epoch_0006.json", b"[1]"),
        (
            "report/data/epoch_0006.json",
            b'{"synthetic": {"difficulty": "x", "classes": [], "loss": "l1"}, "test": null}',
        ),
    ],
)
def test_damaged_files_are_left_out_and_named(drawn, made, name, content):
    drawn.append("classes")
    (made / name).write_bytes(content)
    assert f"{Path(name).name} is damaged and left out." in _report(made).text


def test_a_summary_of_another_shape(drawn, made):
    drawn.append("accuracy")
    (made / "summary.json").write_text(
        json.dumps({"teacher": 3, "student": None, "stability": [], "versions": "x"})
    )
    assert "acc@1 %" in _report(made).text


def test_a_run_without_progress_causes_a_warning(made):
    assert _report(made).tags.count("ul") == 0
    path = observations.path_of(made, 6)
    observation = json.loads(path.read_text())
    observation["synthetic"] |= {"spread": 0.0012, "classes": [1, 0, 59, 0]}
    path.write_text(json.dumps(observation))
    _write_records(made, [_record(epoch, acc1=9.0 + epoch) for epoch in range(1, 4)])
    text = _report(made).text
    assert "Epoch 6: the synthetic images are all alike: a pixel's standard deviation over them is 0.0012" in text
    assert "Epoch 6: 98 % of the synthetic images are of class 2 to the teacher." in text
    assert "The student is at chance: acc@1 12.00 % at best after 3 epochs, 10.00 % is chance." in text
    for wrong in ({"spread": math.nan}, {"spread": "x"}, {"classes": []}, {"classes": [0, math.nan]}):
        path.write_text(json.dumps({**observation, "synthetic": observation["synthetic"] | wrong}))
        assert f"{path.name} is damaged and left out." in _report(made).text


# Several runs


def test_runs_are_compared(drawn, tmp_path, made):
    drawn.append("")
    other = _make_run(tmp_path / "b" / "made", **{"curriculum.lambda_0": 2.5})
    page = _Page(report.write_comparison([made, other], tmp_path / "page"))
    _check_pictures(page)
    assert page.tags.count("svg") == 16  # 2 of accuracy, 2 of loyalty, 5 losses, 4 of the curriculum, 3 legends
    for text in ("b/made", "Settings that differ", "curriculum.lambda_0", "2.5", "teacher, acc@1 95.50 %"):
        assert text in page.text
    observations.save_teacher(other, {"acc1": [95.5]})
    (other / "summary.json").unlink()
    drawn[:] = ["accuracy"]
    assert "teacher, acc@1" not in _Page(report.write_comparison([made, other], tmp_path / "page")).text
    assert (tmp_path / "page/report/compare_accuracy.png").exists()
    assert not (tmp_path / "page/report.html").exists()


# The command line


def test_command_writes_the_report_and_prints_its_path(made, capsys):
    assert main.main(["--stage=report", f"--workdir={made}"]) == 0
    assert capsys.readouterr().out == f"written: {made}/report.html\n"


def test_command_compares(tmp_path, made, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _make_run(tmp_path / "b")
    assert main.main(["--stage=report", "--compare=made,b"]) == 0
    assert capsys.readouterr().out == "written: runs/compare-made-b/compare.html\n"
    assert main.main(["--stage=report", "--compare=b", "--workdir=made"]) == 0  # the run in it and the other
    assert (made / "compare.html").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stage=report"], "no run; give its folder with --workdir, or several with --compare=runs/a,runs/b"),
        (["--stage=report", "--workdir=none"], "--workdir=none holds no distilled run (no config.json)"),
        (["--stage=report", "--workdir=damaged"], "config.json is damaged or of another version; restore it"),
        (["--stage=report", "--workdir=listed"], "config.json is damaged or of another version; restore it"),
        (["--stage=report", "--workdir=made", "--config.seed=1"], "unexpected argument '--config.seed=1'"),
        (["--stage=report", "--compare=made"], "--compare needs two runs or more and got 1"),
        (["--stage=report", "--compare="], "--compare needs two runs or more and got 0"),
        (["--stage=report", "--compare=made,made/../made"], "--compare names made twice; name each run once"),
        (["--stage=report", "--compare=made,none"], "none holds no distilled run"),
        (
            ["--stage=evaluate", "--workdir=made", "--compare=a,b"],
            "--compare=a,b is for --stage=report; leave it out",
        ),
        (["--stage=report", "--workdir=made/config.json"], "is a file; name a folder"),
    ],
)
def test_wrong_input_is_one_line(made, arguments, text, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    for name, content in (("damaged", '{"config": '), ("listed", "[]")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(content)
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("cudfkd: error: ") and error.count("\n") == 1 and text in error
    assert not list(Path().rglob("*.html")) and not Path("runs").exists()


def test_a_report_that_cannot_be_made_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no distilled run"):
        report.write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


# Observations of single images


def test_observations_are_those_of_an_independent_computation():
    teacher, student = np.random.default_rng(1).normal(size=(2, 60, 10)) * 2
    images = np.random.default_rng(2).random((60, 4, 4, 3))
    labels = np.arange(60) % 10
    made = observations.of_test_images(teacher, student, labels)
    p, q = softmax(student, -1), softmax(teacher, -1)
    m = (p + q) / 2
    divergence = (rel_entr(p, m).sum(-1) + rel_entr(q, m).sum(-1)) / 2
    expected = np.histogram(1 - np.sqrt(divergence), observations.LOYALTY_BINS, (0, 1))[0]
    assert np.abs(np.cumsum(expected) - np.cumsum(made["loyalty"])).max() <= 1  # one on the border of two bins
    assert made["images"] == [6] * 10
    assert made["student"] == [int((student.argmax(1) == labels)[labels == c].sum()) for c in range(10)]
    synthetic = observations.of_synthetic_images(images, teacher, student, losses.l1_distance, loss="l1")
    np.testing.assert_allclose(synthetic["difficulty"], np.abs(teacher - student).mean(1), rtol=1e-5)
    assert synthetic["classes"] == [int((teacher.argmax(1) == c).sum()) for c in range(10)]
    deviations = np.sqrt(((images - images.mean(0)) ** 2).mean(0))
    assert synthetic["spread"] == pytest.approx(deviations.mean())


def test_the_picture_by_class_has_a_row_per_class(tmp_path):
    images = np.linspace(0, 1, 6)[:, None, None, None] * np.ones((6, 4, 4, 1))
    logits = np.eye(3)[[2, 0, 2, 0, 0, 2]]
    observations.save_classes(tmp_path / "x.png", images, logits)
    with Image.open(tmp_path / "x.png") as picture:
        small = np.asarray(picture.resize((8 * 6 + 2, 3 * 6 + 2), Image.Resampling.NEAREST))
    cells = small[4::6, 4::6][:3, :8]
    grey = [samples.GREY] * 8
    of = {c: [round(255 * i / 5) for i in indices] for c, indices in {0: (1, 3, 4), 2: (0, 2, 5)}.items()}
    assert cells.tolist() == [(of[0] + grey)[:8], grey, (of[2] + grey)[:8]]


# In a browser


@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_complaint(drawn, made, tmp_path, width):
    """Checks for console messages, undecoded pictures and elements wider than the window."""
    drawn.append("")
    path = report.write_report(made)
    markup = path.read_text()
    policy = re.search(r"<meta http-equiv[^>]+>", markup)[0]
    probe = (
        "<script>addEventListener('load', () => {"
        "const pen = document.createElement('canvas').getContext('2d');"
        "const drawn = [...document.images].filter(i => { pen.drawImage(i, 0, 0); return i.naturalWidth });"
        "const over = document.documentElement.scrollWidth - innerWidth;"
        "document.title = `${drawn.length} decoded, ${over} over` })</script>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(
        markup.replace(policy, policy.replace("img-src", "script-src 'unsafe-inline'; img-src") + probe)
    )
    for page in (path, probed):
        done = subprocess.run(
            [
                *(_CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
                *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
                *("--dump-dom", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>(\d+) decoded, (-?\d+) over</title>", done.stdout)
    assert found, done.stdout[:1000]
    assert int(found[1]) == 4 and int(found[2]) <= 0
