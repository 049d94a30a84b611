"""Tests of what is shown of several runs while they run: epochs, logs and the time left."""

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest

from cudfkd_jax.experiments import display
from cudfkd_jax.experiments.display import Cell, Display, Durations, read_epochs


def _cell(folder, name="cudfkd seed 0", method="cudfkd", seed=0, part=""):
    stage = f"--stage={part or 'distill'}"
    arguments = (f"--config=digits.py:method={method}", stage, f"--config.seed={seed}")
    return Cell(name, folder / f"{method}_{seed}", arguments, part)


def _write(cell, done, seconds=10.0, total=15):
    """Writes the files of a run that has finished `done` epochs, the first of which compiled."""
    cell.results.mkdir(parents=True, exist_ok=True)
    settings = {"config": {f"{cell.part or 'distill'}.epochs": total}}
    (cell.results / "config.json").write_text(json.dumps(settings))
    records = [
        {"epoch": n + 1, "seconds": seconds + 90 * (n == 0), "evaluation_seconds": 0.0} for n in range(done)
    ]
    (cell.results / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("part", ["", "teacher"])
def test_the_epochs_of_a_run_are_read_from_its_files(tmp_path, part):
    cell = _cell(tmp_path, part=part)
    assert read_epochs(cell) is None
    _write(cell, 0)
    assert read_epochs(cell) == (0, 15, None)
    _write(cell, 1)
    assert read_epochs(cell) == (1, 15, None)  # only one that compiled
    _write(cell, 3)
    assert read_epochs(cell) == (3, 15, 10.0)
    (cell.results / "config.json").write_text("{")
    assert read_epochs(cell) is None


# Predictions


def test_runs_that_differ_in_their_seeds_take_equally_long(tmp_path):
    durations = Durations()
    assert durations.predict(_cell(tmp_path)) is None
    durations.learn(_cell(tmp_path, part="teacher"), 5.0)
    assert durations.predict(_cell(tmp_path)) is None  # a teacher says nothing about a student
    durations.learn(_cell(tmp_path, method="adi"), 1000.0)
    assert durations.predict(_cell(tmp_path)) == 1000.0  # the best guess
    durations.learn(_cell(tmp_path), 60.0)
    durations.learn(_cell(tmp_path, seed=1), 80.0)
    assert durations.predict(_cell(tmp_path, seed=2)) == 70.0
    assert durations.predict(_cell(tmp_path, method="adi", seed=1)) == 1000.0


def test_estimates_are_scaled_by_what_finished_runs_took(tmp_path):
    cells = [_cell(tmp_path, method=method) for method in ("cudfkd", "adi", "cmi")]
    durations = Durations({cell.folder: seconds for cell, seconds in zip(cells, (50.0, 500.0, 80.0), strict=True)})
    assert durations.predict(cells[1]) == 500.0
    durations.learn(cells[0], 75.0)
    assert durations.predict(cells[1]) == 750.0
    durations.learn(cells[1], 900.0)
    assert durations.predict(cells[2]) == pytest.approx(80.0 * 975 / 550)


def test_the_time_left_counts_the_epochs_of_running_and_stopped_runs(tmp_path):
    running, stopped, fresh = (_cell(tmp_path, seed=seed) for seed in range(3))
    durations = Durations()
    assert durations.left({running: 100.0}, [fresh], 1) is None
    _write(running, 1)
    assert durations.left({running: 100.0}, [fresh], 1) is None  # the first epoch compiles
    _write(running, 5)
    assert durations.left({running: 140.0}, [], 1) == 100.0
    assert durations.left({running: 140.0}, [fresh], 1) == 100.0 + 150.0
    _write(stopped, 12)
    assert durations.left({running: 140.0}, [stopped, fresh], 1) == pytest.approx(100.0 + 150.0 / 5 + 150.0)
    assert durations.left({running: 140.0}, [stopped, fresh], 2) == pytest.approx(150.0)
    durations.learn(_cell(tmp_path, seed=3), 200.0)
    assert durations.left({running: 140.0}, [fresh], 1) == 100.0 + 200.0
    assert durations.left({fresh: 30.0}, [], 1) == 170.0


# Lines


def test_without_a_terminal_there_are_sparse_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_REDRAW_S", 0.01)
    monkeypatch.setattr(display, "_SPARSE_S", 0.05)
    first, second = (_cell(tmp_path, f"cudfkd seed {seed}", seed=seed) for seed in range(2))
    said = []
    with Display([first, second], 1, Durations(), said.append) as shown:
        shown.begin(first)
        assert said == [f"run 1/2  cudfkd seed 0  started, log {tmp_path}/cudfkd_0.log"]
        _write(first, 2)
        end = time.monotonic() + 10
        while len(said) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # the same epoch is not told again
        assert said[1:] == ["cudfkd seed 0  epoch 3/15  about 4 min 40 s left"]
        shown.end(first, "run 1/2  cudfkd seed 0  acc1_last 91.50")
        assert said[2:] == ["run 1/2  cudfkd seed 0  acc1_last 91.50"]  # nothing is known about the other one
        shown.begin(second)
        shown.end(second, "run 2/2")
    assert said[3].startswith("run 2/2  cudfkd seed 1  started") and said[4:] == ["run 2/2"]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("folder", ["runs", "a_folder_with_a_name_that_takes_much_of_the_line/and_another_one"])
def test_on_a_terminal_one_line_is_drawn_anew(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(display, "_REDRAW_S", 0.01)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.chdir(tmp_path)
    cell, said = _cell(Path(folder)), []
    with Display([cell], 1, Durations(), said.append) as shown:
        shown.begin(cell)
        _write(cell, 2)
        end = time.monotonic() + 10
        while "epoch 3/15" not in sys.stderr.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        shown.stop("stopping")
        shown.end(cell, "run 1/1  stopped")
    assert said == ["stopping", "run 1/1  stopped"]
    *drawn, cleared = sys.stderr.getvalue().removeprefix("\r\x1b[K").split("\r\x1b[K")
    assert cleared == ""  # the line does not stay
    assert max(map(len, drawn)) < 80
    wanted = r"1/1  cudfkd seed 0  epoch 3/15  2 min 10 s left  \S+cudfkd_0.log"
    assert any(re.fullmatch(wanted, line) for line in drawn)
