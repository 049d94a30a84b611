"""Tests of metrics.jsonl: the records after a crash, and those of a resumed run."""

import json
import math

import pytest

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import records
from cudfkd_jax.storage.records import Best


def _write(path, count):
    for epoch in range(1, count + 1):
        records.append(path, {"epoch": epoch, "loss": 1 / (3 * epoch)})


def test_what_was_appended_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.read(path) == []
    _write(path, 2)
    assert records.read(path) == [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 1 / 6}]
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("kept", range(4))
def test_cut_back_keeps_exactly_the_first_epochs(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    _write(path, 3)
    lines = path.read_text().splitlines(keepends=True)
    assert [record["epoch"] for record in records.cut_back(path, kept)] == list(range(1, kept + 1))
    assert path.read_text() == "".join(lines[:kept])  # byte for byte, floats included


@pytest.mark.parametrize("tail", ['{"epoch": 3, "lo', "{", "\0\0\0\0", "3\n", "\xff"])
def test_a_torn_last_line_is_left_out_and_cut_away(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    _write(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + tail.encode("latin-1"))
    assert [record["epoch"] for record in records.read(path)] == [1, 2]
    records.cut_back(path, 2)
    assert path.read_bytes() == whole


def test_a_last_line_without_its_end_is_completed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    records.cut_back(path, 2)
    records.append(path, {"epoch": 3})
    assert path.read_bytes() == whole + b'{"epoch": 3}\n'


@pytest.mark.parametrize("damage", ["missing", "short", "torn in the middle", "an epoch twice"])
def test_missing_epochs_are_an_error_and_nothing_is_written(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    if damage != "missing":
        _write(path, 3)
        lines = path.read_text().splitlines(keepends=True)
        wrong = {"short": lines[:2], "torn in the middle": [lines[0], lines[1][:5] + "\n", lines[2]]}
        path.write_text("".join(wrong.get(damage, [lines[0], lines[0], lines[1]])))
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(UserError, match="does not hold the 3 epochs"):
        records.cut_back(path, 3)
    assert (path.read_bytes() if path.exists() else None) == before


def test_best_is_the_first_of_the_largest():
    history = [{"epoch": 1}, {"epoch": 2, "a": 5.0}, {"epoch": 3, "a": 7.0}, {"epoch": 4, "a": 7.0}]
    assert records.best(history, "a") == Best(7.0, 3)
    assert records.best(history, "b") is None


def test_floats_are_read_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [0.1, 1e-320, math.pi, 1 / 3, 2.0**60]
    records.append(path, {"epoch": 1, "values": values})
    assert records.read(path)[0]["values"] == values
