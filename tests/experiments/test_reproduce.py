"""Tests of the paper's tables and figures: their runs, their contents and refused input."""

import csv
import dataclasses
import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import snapshot
from PIL import Image

from cudfkd_jax.config import files, loading
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.evaluation import observations, samples
from cudfkd_jax.experiments import paper_numbers, plan, reproduce
from cudfkd_jax.experiments.launcher import Outcome
from cudfkd_jax.experiments.plan import RunSpec
from cudfkd_jax.experiments.reproduce import catalogue, estimate, page
from cudfkd_jax.experiments.reproduce.entry import SCALES, Run, Setting
from cudfkd_jax.experiments.reproduce.jobs import Job, Result, count, prepare
from cudfkd_jax.experiments.reproduce.run import _described
from cudfkd_jax.methods import METHODS
from cudfkd_jax.objectives import losses
from cudfkd_jax.runtime.errors import UserError

_ROOT = Path(__file__).parents[2]
_CONFIGS = _ROOT / "configs"
_ON_DIGITS = [name for name, entry in catalogue.ENTRIES.items() if "digits" in entry.scales]
_PAIRS = [(name, scale) for name, entry in catalogue.ENTRIES.items() for scale in entry.scales]


def _script(name):
    spec = importlib.util.spec_from_file_location(name, _ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared():
    """Returns every entry at every scale, with the checks that precede each run."""
    jobs = {}
    for scale in SCALES:
        for job in prepare(catalogue.select(["all"], scale), scale, Path("nowhere"), _CONFIGS, []):
            jobs[job.entry.name, scale] = job
    return jobs


def _place(prepared, name, scale, **of):
    """Returns the folder of the run with these attributes."""
    job = prepared[name, scale]
    (found,) = {
        planned.cell.folder
        for run, planned in zip(job.setting.runs, job.planned, strict=True)
        if all(getattr(run, key) == value for key, value in of.items())
    }
    return found


# Entries


def test_every_table_and_figure_of_the_paper_exists():
    numbered = [*(f"table{n}" for n in range(2, 6)), *(f"fig{n}" for n in range(2, 11))]
    assert list(catalogue.ENTRIES) == [*numbered, "eq8", "short"]  # `short` is not in the paper
    assert [*numbered, "eq8"] == _ON_DIGITS
    assert all(len(catalogue.ENTRIES[name].scales) > 1 for name in _ON_DIGITS)
    assert {scale for entry in catalogue.ENTRIES.values() for scale in entry.scales} == set(SCALES)


def test_every_run_has_a_checked_configuration_and_says_what_was_chosen(prepared):
    assert list(prepared) and set(prepared) == set(_PAIRS)
    for job in prepared.values():
        assert job.setting.choices and job.entry.finds
        names = [run.name for run in job.setting.runs]
        assert len(set(names)) == len(names)
        assert len({planned.cell.folder for planned in job.planned}) == len(names)


def test_networks_and_epochs_are_those_that_the_runs_are_named_by(prepared):
    load = functools.cache(lambda file, overrides: plan.load(RunSpec("", file, overrides)))
    for job in prepared.values():
        by_block: dict[str, set[int]] = {}
        for run, planned in zip(job.setting.runs, job.planned, strict=True):
            config = load(planned.wanted.file, planned.wanted.overrides)
            assert run.block == f"{config.teacher.arch} → {config.student.arch}"
            assert ("noisy" in run.config) == (config.teacher.stop_accuracy > 0)
            by_block.setdefault(run.block, set()).add(config.distill.epochs)
            if run.row in (*METHODS, "scratch"):
                assert config.method == ("cudfkd" if run.row == "scratch" else run.row)
        assert all(len(epochs) == 1 for epochs in by_block.values())  # the same for all methods


def test_tables_contain_the_papers_numbers():
    for name in ("table2", "table3", "table4"):
        for scale, setting in catalogue.ENTRIES[name].scales.items():
            for run in setting.runs:
                found = paper_numbers.scores(*setting.beside[run.block], run.row)
                assert found or scale in ("digits", "cifar10_cpu") or (name, run.row) in {("table5", "mb_dfkd")}


def test_numbers_of_the_paper():
    assert paper_numbers.scores("cifar10", "vgg11", "resnet18", "dafl") == (81.10, 82.30, 0.6303)
    assert paper_numbers.scores("cifar100", "wrn40_2", "wrn40_1", "cmi") == (66.89, 71.69, 0.5525)
    assert paper_numbers.scores("tiny_imagenet", "resnet34", "resnet18", "cmi") == (1.85, 3.65, 0.1181)
    assert paper_numbers.scores("cifar10", "resnet34", "resnet18", "pre_dfkd") == (94.10, None, None)
    assert paper_numbers.scores("cifar10", "wrn40_2", "wrn40_1", "pre_dfkd") is None
    assert paper_numbers.scores("tiny_imagenet", "wrn40_2", "wrn40_1", "cudfkd") is None
    assert paper_numbers.stability("cifar100", "resnet34", "resnet18", "cmi") == (55.2, 24.1, 77.0, 12.5, 22.3)
    assert paper_numbers.stability("cifar10", "vgg11", "resnet18", "cmi") is None


def test_figure_4_has_its_seeds_and_two_teachers(prepared):
    for scale in ("digits", "cifar10"):
        job = prepared["fig4", scale]
        assert {run.seed for run in job.setting.runs} == {0, 10, 20}
        teachers = {
            (run.column, planned.teacher.folder)
            for run, planned in zip(job.setting.runs, job.planned, strict=True)
        }
        assert len(teachers) == 2 and len({folder for _, folder in teachers}) == 2


def test_figure_6_changes_the_strategy_alone(prepared):
    for scale in ("digits", "cifar10_cpu", "cifar10"):
        ramps, strategies = set(), []
        for planned in prepared["fig6", scale].planned:
            config = plan.load(planned.wanted)
            alpha = method_settings(config).alpha_adv()
            steps = config.distill.epochs * config.distill.rounds_per_epoch * config.distill.student_steps
            ramps.add(tuple(float(alpha(steps * part // 10)) for part in range(10)))
            strategies.append(config.curriculum.strategy)
        assert set(strategies) == {"none", "hard", "soft", "log"}
        assert len(ramps) == 1 and len(set(*ramps)) > 1


def test_entries_share_runs(prepared):
    """Checks that entries share a run even if they describe it differently."""
    base = _place(prepared, "table2", "digits", row="cudfkd", seed=0)
    for name, of in (
        ("table4", {"row": "cudfkd"}),
        ("table5", {"row": "cudfkd", "seed": 0}),
        ("fig4", {"row": "cudfkd", "seed": 0, "column": "clean teacher"}),
        ("fig5", {}),
        ("fig6", {"row": "log", "seed": 0}),
        ("fig7", {"row": "20", "seed": 0}),
        ("fig10", {"row": "0.05", "seed": 0}),
    ):
        assert _place(prepared, name, "digits", **of) == base
    for scale, noisy in (("digits", 0), ("cifar10", 0)):
        of_fig4 = {"row": "cudfkd", "seed": noisy, "column": "noisy teacher"}
        assert _place(prepared, "fig8", scale, row="2", seed=0) == _place(prepared, "fig4", scale, **of_fig4)
    middle = {"row": "1/4", "column": "3/4"}
    assert _place(prepared, "fig9", "digits", **middle) == _place(prepared, "fig10", "digits", row="3.2", seed=0)
    whole = _place(prepared, "table3", "cifar100", row="cudfkd", block="resnet34 → resnet18")
    assert _place(prepared, "fig10", "cifar100", row="0.35") == whole
    released = {"row": "1/5", "column": "4/5", "block": "resnet34 → resnet18"}
    assert _place(prepared, "fig9", "cifar100", **released) == whole


def test_documents_state_the_number_of_runs(prepared):
    text = (_ROOT / "docs/reproducing.md").read_text(encoding="utf-8")
    for scale, heading in (("digits", "## On the digits"), ("cifar10_cpu", "## On CIFAR-10 within CPU hours")):
        section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| .*? \| (\d+) \| (\d+) \|", section, re.MULTILINE)
        counted, expected = set(), []
        for entry in catalogue.select(["all"], scale):
            folders = {planned.cell.folder for planned in prepared[entry.name, scale].planned}
            expected.append((entry.name, str(len(folders)), str(len(folders - counted))))
            counted |= folders
        assert rows == expected


# Contents


def _summary(run, place):
    common = {
        "wall_s": 120.0,
        "images_per_s": 800.0,
        "peak_memory_mib": {"host": 1000.0, "device": None},
        "devices": {"kind": "cpu", "count": 1},
        "versions": {"jax": "1"},
    }
    scores = {"agree1": 80 + place, "loyalty_released": 0.5}
    if run.stage == "scratch":
        return common | {"network": {"arch": "student", "acc1": 70.0 + place, **scores}}
    best = {"acc1_best": 71.25 + place, "agree1_best": 81.0 + place, "loyalty_released_best": 0.6}
    return common | {
        "epochs": 15,
        "teacher": {"arch": "teacher", "acc1": 99.0},
        "student": {"arch": "student", "acc1_last": 70.5 + place, **scores, **best},
        "stability": {"mean": 60.0 + place, "variance": 2.0},
    }


def _leave_files(folder):
    """Writes the records of a run in progress."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"results": {}, "config": {"distill.epochs": 15}}))
    shares = {"majorised": 100.0, "minimised": 80.0, "descended": 90.0}
    records = [{"epoch": e, "acc1": 80.0 + e, "agree1": 81.0 + e, **shares} for e in range(1, 16)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "summary.json").write_text("{}")
    random = np.random.default_rng(0)
    for epoch in (3, 9, 15):
        teacher, student = random.normal(size=(2, 60, 10))
        images = random.random((60, 8, 8, 1))
        samples.save_grid(folder / f"samples/classes_{epoch:04d}.png", images[:4])
        synthetic = observations.of_synthetic_images(images, teacher, student, losses.l1_distance, loss="l1")
        test = observations.of_test_images(teacher, student, np.arange(60) % 10)
        observations.save(observations.path_of(folder, epoch), epoch, synthetic, test)


def _results(job, folder, lost=()):
    results = []
    for place, (run, planned) in enumerate(zip(job.setting.runs, job.planned, strict=True)):
        cell = planned.cell._replace(folder=folder / "cells" / planned.cell.folder.name)
        if place in lost:
            results.append(Result(run, Outcome(cell, None, "error: it broke")))
            continue
        if job.entry.form in ("curves", "loyalty", "difficulty", "convergence") and not cell.folder.exists():
            _leave_files(cell.folder)
        results.append(Result(run, Outcome(cell, _summary(run, place))))
    return results


@pytest.mark.parametrize("name", _ON_DIGITS)
def test_an_entry_is_written_completely(name, prepared, tmp_path):
    job = prepared[name, "digits"]
    results = _results(job, tmp_path)
    text = page.write(job, "digits", results, tmp_path / name).read_text(encoding="utf-8")
    for part in (job.entry.title, job.entry.finds, job.setting.too_small, *job.setting.choices, "jax 1"):
        assert part in text
    assert text.count("`python -m cudfkd_jax.main --config=") == text.count(" --config.seed=") == len(results)
    rows = list(csv.DictReader((tmp_path / name / f"{name}.csv").open(encoding="utf-8")))
    assert [row["seed"] for row in rows] == [str(run.seed) for run in job.setting.runs]
    assert [row["folder"] for row in rows] == [planned.cell.folder.name for planned in job.planned]
    assert rows[0]["acc@1 last %"] == ("70.0" if job.setting.runs[0].stage == "scratch" else "70.5")
    for shown in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        with Image.open(tmp_path / name / shown) as picture:
            picture.load()
    if not name.startswith("table"):
        assert (tmp_path / name / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("name", _ON_DIGITS)
def test_an_entry_names_its_failed_runs(name, prepared, tmp_path):
    job = prepared[name, "digits"]
    for lost in ([len(job.planned) - 1], range(len(job.planned))):
        text = page.write(job, "digits", _results(job, tmp_path, lost), tmp_path / name).read_text("utf-8")
        assert text.count("failed: error: it broke") == len(lost)


def _table(text):
    """Returns the rows of the first table, by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    end = next((i for i, line in enumerate(lines[2:], 2) if line[:1] == ["run"]), len(lines))
    return {row[0]: dict(zip(lines[0][1:], row[1:], strict=True)) for row in lines[2:end]}


def test_our_results_are_next_to_the_papers(prepared, tmp_path):
    job = prepared["table2", "digits"]
    text = page.write(job, "digits", _results(job, tmp_path), tmp_path).read_text(encoding="utf-8")
    table = _table(text)
    assert table["teacher"]["acc@1 last %"] == "99.00" and table["teacher"]["paper's acc@1 %"] == "95.70"
    assert table["student from data"]["acc@1 last %"] == table["student from data"]["acc@1 best %"] == "70.00"
    assert table["CMI"]["paper's loyalty"] == "0.8747" and table["DFAD"]["paper's acc@1 %"] == ""
    assert table["CuDFKD"]["runs"] == "3/3" and re.fullmatch(r"\d+\.25 ± 1\.00", table["CuDFKD"]["acc@1 best %"])
    assert "the paper's values are of cifar10, resnet34 → resnet18" in text


def test_table_5_and_figure_6_have_theirs_too(prepared, tmp_path):
    for name, row, column, value in (
        ("table5", "CMI", "paper's memory GB", "12.5"),
        ("table5", "MB-DFKD", "paper's hours", ""),
        ("fig6", "soft", "paper's acc@1 %", "95.01"),
    ):
        job = prepared[name, "digits"]
        text = page.write(job, "digits", _results(job, tmp_path), tmp_path).read_text(encoding="utf-8")
        assert _table(text)[row][column] == value


def test_heat_map_of_figure_9_shows_each_value_at_its_place(prepared, tmp_path):
    job = prepared["fig9", "digits"]
    text = page.write(job, "digits", _results(job, tmp_path, [4]), tmp_path).read_text(encoding="utf-8")
    assert "| 1/5 | 3/4 | 1/1 | 71.50 |" in text and "| 1/4 | 3/4 | 0/1 |" in text
    drawn = (tmp_path / "fig9.svg").read_text(encoding="utf-8")
    assert all(f">{70.5 + place:.2f}<" in drawn for place in (0, 1, 2, 3, 5, 8)) and ">74.50<" not in drawn


def test_figure_9_has_a_panel_per_pair_and_metric(prepared, tmp_path):
    job = prepared["fig9", "cifar100"]
    page.write(job, "cifar100", _results(job, tmp_path), tmp_path)
    assert (tmp_path / "fig9.svg").read_text(encoding="utf-8").count("acc@1 last %") == 3


# Estimates


def test_estimate_adds_starts_and_epochs_and_measures_each_kind_once(prepared):
    runs = prepared["table2", "digits"].planned
    asked = []

    def measure(wanted, section):
        asked.append((wanted.file.partition("method=")[2] if section == "distill" else "", section))
        return Pace(20.0, 6.0) if section == "distill" else Pace(10.0, 5.0)

    coming = estimate.parts(runs)
    seconds = estimate.estimate(coming, lambda text: None, measure)
    assert len(asked) == len(set(asked)) == 11  # nine methods, the student from data, the teacher
    assert sum(seconds.values()) == 27 * (20 + 15 * 6) + 2 * (10 + 12 * 5)
    assert len(coming) == len(seconds) == 29


def test_estimate_skips_runs_that_cannot_be_timed(prepared):
    said = []
    coming = estimate.parts(prepared["fig6", "digits"].planned)
    seconds = estimate.estimate(coming, said.append, lambda wanted, section: "out of memory")
    assert seconds == {} and "  not timed: out of memory" in said


def test_finished_runs_and_their_teachers_are_not_counted(tmp_path):
    (job,) = prepare(catalogue.select(["fig7"], "digits"), "digits", tmp_path, _CONFIGS, [])
    *first, last = job.planned
    for planned in first:
        planned.cell.folder.mkdir(parents=True)
        (planned.cell.folder / "summary.json").write_text("{}")
    assert estimate.parts(job.planned).keys() == {last.cell.folder, last.teacher.folder}
    (last.teacher.folder / "teacher").mkdir(parents=True)
    (last.teacher.folder / "teacher/summary.json").write_text("{}")
    assert estimate.parts(job.planned).keys() == {last.cell.folder}
    assert count(job.planned) == (8, 7)


# Command line


@pytest.fixture
def tiny_configs(tmp_path_factory):
    """Writes a `configs/` whose runs take seconds: the pair of `tiny.py`, whichever pair the entry names."""
    folder = tmp_path_factory.mktemp("configs")
    tiny = (_ROOT / "tests/support/tiny.py").read_text(encoding="utf-8")
    (folder / "digits.py").write_text(
        tiny.replace('wrn10_1", defaults.parse_arguments(arguments))', 'wrn10_1", _kept(arguments))').replace(
            "def get_config",
            "def _kept(arguments):\n"
            "    given = defaults.parse_arguments(arguments)\n"
            "    return {k: v for k, v in given.items() if k not in ('teacher', 'student', 'noisy')}\n\n\n"
            "def get_config",
            1,
        )
    )
    return folder


@pytest.mark.slow
def test_a_real_figure(tmp_path, tiny_configs, finished_run, monkeypatch, capsys):
    """Runs the command to the picture, then reruns it when all results exist."""
    script = _script("reproduce")
    monkeypatch.setattr(files, "FOLDER", tiny_configs)
    arguments = ["fig5", f"--workdir={tmp_path}", f"--config.teacher.checkpoint={finished_run}"]
    assert script.main(arguments) == 0
    said = capsys.readouterr().out
    assert "timing a round, 1 of 1: distill" in said and re.search(r"estimate: [\w ]+ s for 1 run and the", said)
    assert (tmp_path / "fig5/fig5.png").exists() and (tmp_path / "fig5/fig5_early.png").exists()
    before = {name: value for name, value in snapshot(tmp_path).items() if name.startswith("cells/")}
    assert script.main(arguments) == 0
    said = capsys.readouterr().out
    assert "1 run, 1 finished" in said and "estimate" not in said
    assert {n: v for n, v in snapshot(tmp_path).items() if n in before} == before


def test_several_entries_share_runs_and_failures_and_get_an_index(tmp_path, monkeypatch):
    tried = []

    def run(wanted, *, jobs, say, durations):
        tried.extend(cell.folder for cell in wanted)
        outcomes = []
        for cell in wanted:
            if "method=dafl" in cell.arguments[0]:
                outcomes.append(Outcome(cell, None, "error: it broke"))
                continue
            summary = cell.folder / cell.part / "summary.json"
            summary.parent.mkdir(parents=True, exist_ok=True)
            summary.write_text("{}")
            outcomes.append(Outcome(cell, _summary(_Stage(cell.part), 1)))
        return outcomes

    monkeypatch.setattr(plan.launcher, "run_cells", run)
    monkeypatch.setattr(plan, "check_surroundings", lambda planned: None)
    monkeypatch.setattr(estimate, "measure_elsewhere", lambda wanted, section: Pace(1.0, 1.0))
    said = []
    results = reproduce.reproduce(["table3", "table2", "table5"], "digits", tmp_path, _CONFIGS, say=said.append)
    assert len([r for r in results if r.outcome.summary is None]) == 3 + 2 + 3
    lost = [r for r in results if r.run.row == "dafl"]
    assert all(r.outcome.error == "error: it broke" for r in lost)
    failing = {r.outcome.cell.folder for r in lost}
    assert all(tried.count(folder) == 1 for folder in failing)  # two entries share some of them
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert [line.split("|")[2].strip() for line in index.splitlines()[4:]] == ["25/28", "5/7", "18/21"]
    assert all((tmp_path / found).exists() for found in re.findall(r"\]\(([^)]+)\)", index))
    assert json.loads((tmp_path / "reproduce.json").read_text()) == {"scale": "digits"}
    assert "estimate:" in "\n".join(said)


class _Stage:
    def __init__(self, part):
        self.stage = part


def test_list_names_everything(capsys):
    assert _script("reproduce").main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, entry in catalogue.ENTRIES.items():
        assert all(re.search(rf"^{name} .*\b{scale} \(\d+\)", said, re.MULTILINE) for scale in entry.scales)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no table or figure; name some, or all"),
        (["fig1"], "unknown table or figure 'fig1' (did you mean 'fig10'?)"),
        (["fig6", "--scale=imagenet"], "unknown --scale 'imagenet'"),
        (["fig9", "--scale=cifar10"], "fig9 has no --scale=cifar10; it has digits, cifar100"),
        (["fig6", "--config.curriculum.strategy=log"], "--config.curriculum.strategy: fig6 decides it"),
        (["fig6", "--config.seed=3"], "--config.seed: fig6 decides it"),
        (["fig4", "--config.teacher.checkpoint=x"], "fig4 trains its noisy teacher itself"),
        (["fig6", "--config.teacher.checkpoint=x"], "teacher.checkpoint=x is neither a trained network"),
        (["fig6", "--config.distill.epoch=3"], "unknown configuration key 'distill.epoch'"),
        (["fig6", "--config.distill.epochs=0"], "distill.epochs=0 must be greater than 0"),
        (["fig6", "--jobs=0"], "--jobs=0 must be at least 1"),
        (["fig6", "--workdir=taken"], "is a file; name a folder"),
        (["fig6", "--workdir=cifar10"], "--workdir=cifar10 holds --scale=cifar10; name another one"),
        (["fig6", "--workdir=damaged"], "reproduce.json is damaged"),
        (["fig6", "--config.devices=99"], "devices=99 but only"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan.launcher, "elsewhere", lambda function, *given: function(*given))
    Path("taken").write_text("")
    for name, content in (("cifar10", '{"scale": "cifar10"}'), ("damaged", "{")):
        Path(name).mkdir()
        Path(name, "reproduce.json").write_text(content)
    before = snapshot(tmp_path)
    assert _script("reproduce").main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_overrides_are_for_every_run():
    (job,) = prepare(
        catalogue.select(["table2"], "digits"), "digits", Path("nowhere"), _CONFIGS, ["--config.distill.epochs=4"]
    )
    assert {plan.load(planned.wanted).distill.epochs for planned in job.planned} == {4}
    assert all("--config.distill.epochs=15" not in planned.cell.arguments for planned in job.planned)


def test_a_run_that_cannot_be_configured_is_refused():
    entry = catalogue.ENTRIES["fig7"]
    wrong = Setting([Run("digits:", "x", changes={"distill.temperature": -1.0})])
    changed = dataclasses.replace(entry, scales={"digits": wrong})
    with pytest.raises(UserError, match=r"distill.temperature=-1.0 must be greater than 0"):
        prepare([changed], "digits", Path("nowhere"), _CONFIGS, [])


def test_description_of_an_entry_names_runs_changes_and_choices(prepared):
    job: Job = prepared["fig8", "digits"]
    text = _described(job, [])
    assert "8 runs, 0 finished" in text and "curriculum.lambda_0=2.2" in text
    assert all(f"  * {choice}" in text for choice in job.setting.choices)
    assert loading.load(job.planned[0].wanted.file).teacher.stop_accuracy == 94.0
