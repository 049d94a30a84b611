"""Tests of the comparison of methods and seeds in one table."""

import csv
import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import snapshot

from cudfkd_jax.experiments import compare, launcher, paper_numbers, plan
from cudfkd_jax.experiments.launcher import Cell, Outcome
from cudfkd_jax.report import figures
from cudfkd_jax.runtime.errors import RunFailedError, StoppedError, UserError, choose
from cudfkd_jax.storage import workdir

_ROOT = Path(__file__).parents[2]
_TINY = str(_ROOT / "tests/support/tiny.py")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, _ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _summary(acc1, dataset="digits", teacher="wrn16_2", student="wrn16_1"):
    return {
        "dataset": dataset,
        "epochs": 15,
        "teacher": {"arch": teacher, "acc1": 99.0},
        "student": {"arch": student, "acc1_last": acc1, "acc1_best": acc1 + 1, "agree1": 90.0, "loyalty": 0.5},
        "stability": {"mean": acc1, "variance": 1.0},
        "wall_s": 120.0,
        "images_per_s": 800.0,
        "peak_memory_mib": {"host": 1000.0, "device": None},
        "devices": {"kind": "cpu", "count": 1},
        "versions": {"jax": "1"},
    }


def _outcome(tmp_path, method, seed, acc1=None, error="", **changes):
    cell = Cell(f"{method} seed {seed}", tmp_path / method / f"seed_{seed}", ())
    return Outcome(cell, None if acc1 is None else _summary(acc1, **changes), error)


def test_table_has_mean_and_deviation_over_seeds_and_names_failures(tmp_path):
    outcomes = [_outcome(tmp_path, "dafl", seed, acc1) for seed, acc1 in ((0, 90.0), (1, 94.0))]
    outcomes += [_outcome(tmp_path, "cmi", 0, 97.0), _outcome(tmp_path, "cmi", 1, error="error: it broke (log)")]
    text = compare.write_table(tmp_path, ["dafl", "cmi"], outcomes)
    assert text == (tmp_path / "table.md").read_text(encoding="utf-8")
    heading, _, dafl, cmi = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    )
    dafl, cmi = (dict(zip(heading, row, strict=True)) for row in (dafl, cmi))
    assert (dafl["runs"], dafl["acc@1 last %"], dafl["acc@1 best %"]) == ("2/2", "92.00 ± 2.83", "93.00 ± 2.83")
    assert (cmi["runs"], cmi["acc@1 last %"], cmi["wall min"], cmi["paper's acc@1 %"]) == (
        "1/2",
        "97.00",
        "2.0",
        "",
    )
    assert "cmi seed 1 failed: error: it broke (log)" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [(r["method"], r["seed"], r["acc@1 last %"]) for r in rows] == [
        *(("dafl", "0", "90.0"), ("dafl", "1", "94.0"), ("cmi", "0", "97.0"), ("cmi", "1", "")),
    ]
    assert rows[3]["error"] == "error: it broke (log)" and rows[2]["peak memory MiB"] == "1000.0"


def test_the_papers_numbers_are_next_to_its_pairs(tmp_path):
    pair = {"dataset": "cifar10", "teacher": "resnet34", "student": "resnet18"}
    text = compare.write_table(tmp_path, ["cmi"], [_outcome(tmp_path, "cmi", 0, 94.0, **pair)])
    assert "| 94.84 | 82.4 / 16.6 |" in text


def test_numbers_of_the_paper():
    assert paper_numbers.acc1("cifar100", "wrn40_2", "wrn16_2", "zskt") == 50.98
    assert paper_numbers.acc1("cifar100", "vgg11", "resnet18", "pre_dfkd") is None
    assert paper_numbers.acc1("tiny_imagenet", "resnet34", "resnet18", "cudfkd") == 43.42
    assert paper_numbers.acc1("digits", "wrn16_2", "wrn16_1", "cudfkd") is None
    assert paper_numbers.agree1("cifar10", "wrn40_2", "wrn40_1") == 95.27
    assert paper_numbers.loyalty_released("cifar100", "resnet34", "resnet18") == 0.6576
    assert paper_numbers.loyalty_released("digits", "wrn16_2", "wrn16_1") is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods=all"], "the following arguments are required"),
        (
            ["--methods=dafl,dafi"],
            "unknown method in --methods 'dafi' (did you mean 'dafl'?); valid: all, cudfkd, dafl",
        ),
        (["--methods=dafl,dafl"], "--methods names dafl twice"),
        (["--seeds=0,x"], "--seeds=0,x must be whole numbers"),
        (["--seeds=1,1"], "--seeds names 1 twice"),
        (["--seeds=-1"], "--seeds=-1 must not be negative"),
        (["--jobs=0"], "--jobs=0 must be at least 1"),
        (["--workdir="], "--workdir is empty; expected a folder"),
        (["--config=nowhere.py"], "no configuration file 'nowhere.py'"),
        (["--config.distill.epoch=1"], "unknown configuration key 'distill.epoch'"),
        (["--config.seed=3"], "--config.seed=3: methods are given by --methods, seeds by --seeds"),
        ([f"--config={_TINY}:method=cmi"], "methods are given by --methods"),
        (["--config.distill.batch_size=0"], "distill.batch_size=0 must be greater than 0"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(arguments, text, tmp_path, capsys):
    folder = tmp_path / "compare"
    given = {"--config": _TINY, "--methods": "dafl", "--seeds": "0", "--workdir": str(folder)}
    given |= dict(argument.split("=", 1) for argument in arguments)
    if "required" in text:
        del given["--config"]
    assert _script("compare").main([f"{key}={value}" for key, value in given.items()]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and not folder.exists()


def _package(folder):
    """Returns the folder of an empty package, whose programs replace real runs."""
    program = folder / "cudfkd_jax" / "experiments"
    program.mkdir(parents=True)
    for place in (program, program.parent):
        (place / "__init__.py").write_text("")
    return program


def test_runs_that_fail_do_not_stop_the_others(tmp_path, monkeypatch):
    """Checks that the reported reason is the last line of the run's own process."""
    program = _package(tmp_path)
    (program / "child.py").write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))\n"
        "if 'bad' in sys.argv: sys.exit(print('cudfkd: error: out of luck', file=sys.stderr) or 1)\n"
        "if 'killed' in sys.argv: sys.exit(-9)\n"
        "folder.mkdir(parents=True)\n"
        "result = {'student': {'acc1_last': 91.5}, 'wall_s': 3}\n"
        "(folder / 'summary.json').write_text(json.dumps(result))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runs = [Cell(name, tmp_path / "runs" / name, (name,)) for name in ("bad", "good", "killed", "fine")]
    for jobs, said_first in ((1, "run 1/4  bad  started, log "), (2, "2 of 4 runs are finished already")):
        told = []
        outcomes = launcher.run_cells(runs, jobs=jobs, say=told.append)
        assert [outcome.summary is None for outcome in outcomes] == [True, False, True, False]
        assert outcomes[0].error.startswith("error: out of luck (") and "exit status" in outcomes[2].error
        assert told[0].startswith(said_first)
    assert "acc1_last 91.50 in 3 s" in "".join(launcher._result(o) for o in outcomes if o.summary)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_alone_stops_its_runs(tmp_path, monkeypatch, number):
    """The runs get no signal; they see their stdin close, and the command waits for them."""
    program = _package(tmp_path)
    (program / "child.py").write_text(
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))\n"
        "folder.mkdir()\n"
        "sys.stdin.read()\n"
        "time.sleep(0.2)\n"
        "(folder / 'saved').touch()\n"
        "sys.exit(143)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runs = [Cell(name, tmp_path / name, ()) for name in ("first", "second", "third")]

    def send():
        while not all((tmp_path / name).exists() for name in ("first", "second")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=send).start()
    said = []
    with pytest.raises(StoppedError, match=f"stopped by {number.name}; rerun the same command to resume"):
        launcher.run_cells(runs, jobs=2, say=said.append)
    signal.signal(signal.SIGINT, before[1])
    stopping = said.index("stopping: the runs save their states; press Ctrl-C again to quit without waiting")
    assert {text.split("  ", 1)[1] for text in said[stopping + 1 :]} == {"first  stopped", "second  stopped"}
    assert (tmp_path / "first/saved").exists() and (tmp_path / "second/saved").exists()
    assert not (tmp_path / "third").exists() and signal.getsignal(signal.SIGTERM) == before[0]


def test_a_running_comparison_is_named_and_untouched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "check_surroundings", lambda planned: None)
    with workdir.lock(tmp_path):
        before = snapshot(tmp_path)
        arguments = [f"--config={_TINY}", "--methods=dafl", "--seeds=0", f"--workdir={tmp_path}"]
        assert _script("compare").main(arguments) == 2
        assert snapshot(tmp_path) == before
    assert f"is in use by a running process (pid {os.getpid()})" in capsys.readouterr().err


def test_a_damaged_summary_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        launcher.run_cells([Cell("run", tmp_path / "run", ())])


@pytest.mark.parametrize("report", [True, False])
def test_a_run_killed_before_its_report_gets_one(run_copy, monkeypatch, report):
    monkeypatch.setattr(figures, "of_run", lambda run: [])  # takes seconds
    page, settings = run_copy / "report.html", run_copy / "config.json"
    page.unlink()
    kept = json.loads(settings.read_text())
    settings.write_text(json.dumps(kept | {"config": kept["config"] | {"log.report": report}}))
    launcher.run_cells([Cell("run", run_copy, ())], say=lambda text: None)
    assert page.exists() == report


def test_a_separate_process_returns_its_result():
    assert launcher.elsewhere(divmod, 7, 2) == (3, 1)
    with pytest.raises(UserError, match="unknown --stage 'b'; valid: c"):
        launcher.elsewhere(choose, "--stage", "b", ("c",))
    with pytest.raises(RunFailedError, match="was killed"):
        launcher.elsewhere(os._exit, 1)
