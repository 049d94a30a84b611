"""Tests of sweeps: their runs, their results, and the input refused before any run starts."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from helpers import snapshot
from PIL import Image

from cudfkd_jax.experiments import plan, sweep
from cudfkd_jax.experiments.launcher import Cell, Outcome
from cudfkd_jax.experiments.plan import RunSpec
from cudfkd_jax.experiments.sweep import Axis
from cudfkd_jax.runtime.errors import UserError

_ROOT = Path(__file__).parents[2]
_TINY = str(_ROOT / "tests/support/tiny.py")
_LAMBDA, _BEGIN, _END = "curriculum.lambda_0", "curriculum.k_begin", "curriculum.k_end"
# Replaces the command line: writes a run's files, or fails if the setting says so.
_PROGRAM = """\
import json, pathlib, sys
given = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:])
if "config.curriculum.lambda_0" in given and float(given["config.curriculum.lambda_0"]) == 3:
    sys.exit(print("cudfkd: error: out of luck", file=sys.stderr) or 1)
if given["stage"] == "teacher" and given.get("config.teacher.epochs") == "9":
    sys.exit(print("cudfkd: error: no such teacher", file=sys.stderr) or 1)
folder = pathlib.Path(given["workdir"])
summary = {"wall_s": 60, "images_per_s": 5, "peak_memory_mib": {"host": 1, "device": None}, "epochs": 2,
           "dataset": "digits", "devices": {"kind": "cpu", "count": 1}, "versions": {"jax": "1"}}
if given["stage"] == "teacher":
    folder, summary["network"] = folder / "teacher", {"acc1": 99.0}
else:
    summary["teacher"] = {"arch": "a", "acc1": 99.0}
    summary["student"] = {"arch": "b", "acc1_last": 90 + float(given["config.seed"]) / 3}
folder.mkdir(parents=True)
(folder / "summary.json").write_text(json.dumps(summary))
"""


def _script(name):
    spec = importlib.util.spec_from_file_location(name, _ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(*axes, seeds=(0,), overrides=(), folder=Path("nowhere")):
    return sweep.check(_TINY, [sweep.parse_axis(axis) for axis in axes], seeds, folder, overrides)


def _outcome(place, **student):
    summary = {
        "dataset": "digits",
        "epochs": 2,
        "teacher": {"arch": "wrn16_2"},
        "student": {"arch": "wrn16_1", **student},
        "wall_s": 120.0,
        "images_per_s": 800.0,
        "peak_memory_mib": {"host": 1000.0, "device": None},
        "devices": {"kind": "cpu", "count": 1},
        "versions": {"jax": "1"},
    }
    return Outcome(
        Cell(place, Path("cells", place), ()), summary if student else None, "" if student else "broken"
    )


# Runs of a sweep


def test_every_combination_and_seed_is_a_run_with_one_teacher():
    planned = _checked(f"{_LAMBDA}=2,2.5", f"{_BEGIN}=0.1,0.2", seeds=(0, 4))
    assert [p.wanted.name for p in planned][:3] == [
        f"{_LAMBDA}=2 {_BEGIN}=0.1 seed 0",
        f"{_LAMBDA}=2 {_BEGIN}=0.1 seed 4",
        f"{_LAMBDA}=2 {_BEGIN}=0.2 seed 0",
    ]
    assert len({p.cell.folder for p in planned}) == 8 and len({p.teacher.folder for p in planned}) == 1
    assert f"--config.{_LAMBDA}=2.5" in planned[-1].cell.arguments
    assert f"--config.teacher.checkpoint={planned[-1].teacher.folder}" in planned[-1].cell.arguments


@pytest.mark.parametrize("axis", ["teacher.epochs=2,3", "teacher.arch=wrn10_1,wrn16_1", "data.padding=0,1"])
def test_settings_of_the_teacher_need_separate_teachers(axis):
    planned = _checked(axis, seeds=(0, 1))
    assert len({p.teacher.folder for p in planned}) == 2 and len({p.cell.folder for p in planned}) == 4


def test_a_given_teacher_is_not_trained(finished_run):
    planned = _checked(f"{_LAMBDA}=2,2.5", overrides=[f"--config.teacher.checkpoint={finished_run}"])
    trained = _checked(f"{_LAMBDA}=2,2.5")
    assert {p.teacher for p in planned} == {None}
    assert not {p.cell.folder for p in planned} & {p.cell.folder for p in trained}


def test_a_folder_is_named_by_the_settings_that_affect_results():
    def folder(*overrides, seed=1, stage="distill"):
        (planned,) = plan.plan([RunSpec("run", _TINY, overrides, seed, stage)], Path("nowhere"))
        return planned.cell.folder

    same = folder()
    for setting in ("log.tensorboard=false", "loop=scan", "checkpoint.keep=7", "evaluation.batch_size=9"):
        assert folder(f"--config.{setting}") == same
    assert folder("--config.curriculum.strategy=log", "--config.distill.temperature=20") == same
    others = [
        folder(f"--config.{setting}")
        for setting in (
            "distill.temperature=3",
            "teacher.epochs=2",
            "student.arch=wrn16_1",
            "curriculum.alpha=0.1",
        )
    ]
    others += [folder(seed=2), folder(stage="scratch")]
    assert len({same, *others}) == 7


def test_commas_in_parentheses_belong_to_a_value():
    assert sweep.parse_axis("data.mean=(0.1,),(0.2,)") == Axis("data.mean", ("(0.1,)", "(0.2,)"))
    assert len(_checked("data.mean=(0.1,),(0.2,)")) == 2


# Results


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_one_setting_gives_bars(tmp_path, seeds):
    axes = [Axis(_LAMBDA, ("2", "3"))]
    outcomes = [_outcome(f"{i}", acc1_last=90 + i / 3, acc1_best=95.0) for i in range(len(seeds))]
    outcomes += [_outcome("lost") for _ in seeds]
    text = sweep.write(tmp_path, axes, seeds, outcomes)
    mean = "90.00" if len(seeds) == 1 else "90.17 ± 0.24"
    assert f"| 2 | {len(seeds)}/{len(seeds)} | {mean} | 95.00" in text and "lost failed: broken" in text
    assert f"| 3 | 0/{len(seeds)} |" in text and "agree" not in text
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open(encoding="utf-8")))
    assert [(r[_LAMBDA], r["seed"], r["error"]) for r in rows] == [
        *(("2", str(seed), "") for seed in seeds),
        *(("3", str(seed), "broken") for seed in seeds),
    ]
    assert [r["acc@1 last %"] for r in rows[: len(seeds)]] == [str(90 + i / 3) for i in range(len(seeds))]
    drawn = (tmp_path / "sweep.svg").read_text(encoding="utf-8")
    assert _LAMBDA in drawn and "acc@1, last epoch, %" in drawn
    with Image.open(tmp_path / "sweep.png") as picture:
        picture.load()


def test_two_settings_give_a_heat_map(tmp_path):
    axes = [Axis(_BEGIN, ("0.1", "0.2")), Axis(_END, ("0.7", "0.8"))]
    outcomes = [_outcome(str(acc1), acc1_last=acc1) for acc1 in (91.25, 92.5, 93.0)] + [_outcome("lost")]
    assert "| 0.1 | 0.8 | 1/1 | 92.50" in sweep.write(tmp_path, axes, (0,), outcomes)
    drawn = (tmp_path / "sweep.svg").read_text(encoding="utf-8")
    assert all(text in drawn for text in (_BEGIN, _END, ">91.25<", ">92.50<", ">93.00<")) and ">nan<" not in drawn


def test_three_settings_give_a_table_alone(tmp_path):
    axes = [Axis(key, ("1",)) for key in (_LAMBDA, _BEGIN, _END)]
    assert "| 1 | 1 | 1 | 1/1 | 91.00" in sweep.write(tmp_path, axes, (0,), [_outcome("a", acc1_last=91.0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.md"]


def test_without_images_the_agreement_on_synthetic_ones_is_drawn(tmp_path):
    sweep.write(tmp_path, [Axis(_LAMBDA, ("2",))], (0,), [_outcome("a", agree1_synthetic=80.0)])
    assert "agree@1, synthetic, %" in (tmp_path / "sweep.svg").read_text(encoding="utf-8")


# Running


@pytest.fixture
def fake_runs(tmp_path, monkeypatch):
    """Replaces runs by instant ones and returns the folder of a sweep."""
    program = tmp_path / "program/cudfkd_jax/experiments"
    program.mkdir(parents=True)
    for place in (program, program.parent):
        (place / "__init__.py").write_text("")
    (program / "child.py").write_text(_PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "program"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "check_surroundings", lambda planned: None)
    return tmp_path / "sweep"


def test_a_failed_run_is_reported_and_the_others_complete(fake_runs, capsys):
    arguments = [f"--config={_TINY}", f"--set={_LAMBDA}=2,3,4", "--seeds=0,3", f"--workdir={fake_runs}"]
    assert _script("sweep").main(arguments) == 1
    said = capsys.readouterr()
    assert said.err == "cudfkd: error: 2 of 6 runs failed; the same command tries them again\n"
    assert "| 2 | 2/2 | 90.50 ± 0.71" in said.out and "| 4 | 2/2 |" in said.out and "| 3 | 0/2 |" in said.out
    assert f"{_LAMBDA}=3 seed 0 failed: error: out of luck" in said.out
    assert _script("sweep").main([*arguments, "--jobs=2"]) == 1
    said = capsys.readouterr().out
    assert "4 of 6 runs are finished already" in said and "teacher" not in said.split("digits:")[0]


def test_runs_without_their_teacher_are_not_begun(fake_runs, capsys):
    arguments = [f"--config={_TINY}", "--set=teacher.epochs=8,9", f"--workdir={fake_runs}"]
    assert _script("sweep").main(arguments) == 1
    said = capsys.readouterr().out
    assert (
        "2 teachers first" in said and "teacher.epochs=9 seed 0 failed: no teacher: error: no such teacher" in said
    )
    assert "| 8 | 1/1 |" in said


def test_default_workdir_tells_sweeps_apart():
    one, other = Axis(_LAMBDA, ("2",)), Axis(_BEGIN, ("0.1",))
    folder = sweep.default_workdir(f"{_TINY}:method=dafl", [one, other], [])
    assert folder == Path(f"runs/sweep-tiny-method=dafl-{_LAMBDA}-{_BEGIN}")
    names = {sweep.default_workdir(_TINY, [one], given) for given in ([], ["--config.distill.epochs=2"])}
    assert len(names) == 2


@pytest.mark.slow
def test_a_real_sweep(tmp_path, finished_run, capsys):
    arguments = [f"--config={_TINY}", f"--set={_LAMBDA}=2.5", f"--workdir={tmp_path}"]
    arguments += [f"--config.teacher.checkpoint={finished_run}"]
    assert _script("sweep").main(arguments) == 0
    assert (tmp_path / "sweep.md").read_text(encoding="utf-8") in capsys.readouterr().out
    (found,) = tmp_path.glob("cells/*/config.json")
    assert json.loads(found.read_text())["config"][_LAMBDA] == 2.5
    before = {name: value for name, value in snapshot(tmp_path).items() if name.startswith("cells/")}
    assert _script("sweep").main(arguments) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    assert {n: v for n, v in snapshot(tmp_path).items() if n in before} == before


def test_missing_resources_are_reported_before_any_run(tmp_path):
    """Checks in a separate process that missing devices, then missing images, are reported."""
    for setting, text in (("devices=99", "devices=99 but only"), ("data.source=none", "has no images to train")):
        planned = _checked(f"{_LAMBDA}=2,2.5", overrides=[f"--config.{setting}"], folder=tmp_path)
        with pytest.raises(UserError, match=text):
            plan._check_here([each.wanted for each in planned])
    assert list(tmp_path.iterdir()) == []


# Refused input


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: --set"),
        ([f"--set={_LAMBDA}"], f"--set {_LAMBDA}: write a setting and its values"),
        ([f"--set={_LAMBDA}="], "write a setting and its values"),
        ([f"--set={_LAMBDA}=2,,3"], "write a setting and its values"),
        (["--set=curriculum.lamda_0=2"], "unknown configuration key 'curriculum.lamda_0'; the nearest are"),
        ([f"--set={_LAMBDA}=2,x"], f"--config.{_LAMBDA}=x must be a number"),
        ([f"--set={_LAMBDA}=2,2.0"], f"--set {_LAMBDA} names 2.0 twice"),
        ([f"--set={_LAMBDA}=2", f"--set={_LAMBDA}=3"], f"--set names {_LAMBDA} twice"),
        ([f"--set={_LAMBDA}=2", f"--config.{_LAMBDA}=3"], f"--set and --config.{_LAMBDA} both give"),
        ([f"--set={_LAMBDA}=2,-1"], f"{_LAMBDA}=-1.0 must be greater than 0"),
        ([f"--set={_BEGIN}=0.1,0.7", f"--set={_END}=0.5,0.8"], f"{_BEGIN}=0.7 and {_END}=0.5: choose"),
        (["--set=seed=0,1"], "seeds are given by --seeds"),
        ([f"--set={_LAMBDA}=2", "--config.seed=1"], "seeds are given by --seeds"),
        (["--set=method=dafl,dfq"], "choose a method after the colon"),
        ([f"--set={_LAMBDA}=2", "--seeds=0,0"], "--seeds names 0 twice"),
        ([f"--set={_LAMBDA}=2", "--jobs=x"], "--jobs=x must be at least 1"),
        ([f"--set={_LAMBDA}=2", "--workdir="], "--workdir is empty; expected a folder"),
        ([f"--set={_LAMBDA}=2", "stray"], "unexpected argument 'stray'"),
        ([f"--set={_LAMBDA}=2", "--config=nowhere.py"], "no configuration file 'nowhere.py'"),
        ([f"--set={_LAMBDA}=2", "--workdir=taken"], "is a file; name a folder"),
        (["--set=teacher.checkpoint=nowhere,taken"], "teacher.checkpoint=nowhere is neither a trained network"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    assert _script("sweep").main([f"--config={_TINY}", "--workdir=sweep", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
