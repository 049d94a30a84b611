"""Tests of the comparison with the released code: its verdicts, draws and traces of PyTorch functions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity import rows

torch = pytest.importorskip("torch")
replay = pytest.importorskip("parity.replay")

_SCRIPT = Path(__file__).parents[2] / "scripts" / "check_parity.py"


def _row(ours, theirs, precision=rows.FLOAT64, **options):
    report = rows.Report(precision, log=lambda line: None)
    report.case("method", "case").compare("quantity", ours, theirs, **options)
    (row,) = report.rows.values()
    return row


@pytest.mark.parametrize(
    ("ours", "theirs", "named", "verdict"),
    [
        (1.0 + 1e-7, 1.0, "", rows.EQUAL),
        (1.0 + 1e-5, 1.0, "", rows.DIFFERS),
        (1.0 + 1e-5, 1.0, "docs", rows.NAMED),
        (1.0 + 1e-7, 1.0, "docs", rows.NOT_SHOWN),
        (0.0, 0.0, "", rows.EQUAL),
        (1e-300, 0.0, "", rows.DIFFERS),
        (np.nan, 1.0, "", rows.DIFFERS),
        (1.0, np.inf, "", rows.DIFFERS),
        (np.zeros(3), np.zeros(3), "", rows.EQUAL),
    ],
)
def test_verdicts(ours, theirs, named, verdict):
    row = _row(ours, theirs, named=named)
    assert row.verdict == verdict
    assert row.failed == (verdict in (rows.DIFFERS, rows.NOT_SHOWN))


def test_a_tree_is_as_good_as_its_worst_array_and_in_float32_as_the_norm():
    ours, theirs = {"a": np.ones(1000), "b": np.array([1e-6])}, {"a": np.ones(1000), "b": np.array([2e-6])}
    row = _row(ours, theirs)
    assert row.verdict == rows.DIFFERS and row.relative == pytest.approx(0.5)
    assert row.norm == pytest.approx(1e-6 / 1000**0.5)
    assert _row(ours, theirs, rows.FLOAT32).verdict == rows.EQUAL


def test_a_row_keeps_the_largest_difference_of_all_steps():
    report = rows.Report(rows.FLOAT64, log=lambda line: None)
    case = report.case("method", "case")
    for ours in (2.0, 2.1, 2.0):
        case.compare("quantity", ours, 2.0)
    (row,) = report.failures
    assert (row.count, row.absolute, row.relative) == (3, pytest.approx(0.1), pytest.approx(0.05))
    assert "| quantity | 3 | 1e-01 | 5e-02 |  | DIFFERS |  |" in rows.table(report)


def test_shapes_and_names_must_be_the_same():
    with pytest.raises(ValueError, match="different shapes"):
        _row(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="different structures"):
        _row({"a": 1.0}, {"b": 1.0})


def test_what_rounding_decides_is_left_out_of_float32():
    report = rows.Report(rows.FLOAT32, log=lambda line: None)
    report.case("method", "case").compare("quantity", 1.0, 2.0, only_float64=True)
    assert not report.rows


def test_draws_are_fed_in_turn_and_all_of_them():
    draws = [np.full((2, 3), 1.0), np.full((4,), 2.0)]
    with replay.feeding(draws):
        first, second = torch.randn(2, 3), torch.randn(size=(4,), requires_grad=True)
    assert first.tolist() == draws[0].tolist() and second.tolist() == draws[1].tolist()
    assert second.requires_grad and not first.requires_grad
    with pytest.raises(ValueError, match=r"draws \(3,\) where we draw \(2,\)"), replay.feeding([np.zeros(2)]):
        torch.randn(3)
    with pytest.raises(ValueError, match="leaves 1 of our draws unused"), replay.feeding([np.zeros(2)]):
        pass
    assert torch.randn(5).std() > 0


def _counted(limit):
    total = torch.zeros(())
    for step in range(limit):
        doubled = 2 * step
        total += doubled  # variables are read before this line
    return total


def test_local_variables_are_read_before_a_line_and_at_the_return():
    with replay.traced(_counted, "total +=") as trace:
        _counted(3)
    assert [seen["doubled"] for seen in trace.steps] == [0, 2, 4]
    assert [float(seen["total"]) for seen in trace.steps] == [0, 0, 2]  # copies
    assert float(trace.returned["total"]) == 6
    assert sys.gettrace() is None


def test_running_variance_is_that_of_flax_for_a_while():
    x, layers = torch.randn(4, 2, 3, 3), [torch.nn.BatchNorm2d(2) for _ in range(2)]
    with replay.biased_running_variance():
        layers[0](x)
    layers[1](x)
    biased = 0.9 + 0.1 * x.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(layers[0].running_var, biased)
    assert not torch.allclose(layers[1].running_var, biased, rtol=1e-4)
    torch.testing.assert_close(layers[0].running_mean, layers[1].running_mean)


def test_a_folder_without_the_release_is_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, _SCRIPT, f"--release={tmp_path}", f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"check_parity: RELEASE={tmp_path} has no datafree_kd.py; expected a checkout of ljrprocc/DataFree"
    )
    assert not (tmp_path / "out").exists()
