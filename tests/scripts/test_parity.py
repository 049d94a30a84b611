"""Tests of the comparison with the released code: its verdicts, draws and traces of PyTorch functions."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cudfkd_jax.runtime.errors import UserError
from parity import rows

torch = pytest.importorskip("torch")
replay = pytest.importorskip("parity.replay")
released = pytest.importorskip("parity.released")
networks = pytest.importorskip("parity.networks")

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


def test_commands_of_a_script_are_read_one_by_one(tmp_path):
    (tmp_path / "scripts").mkdir()
    path = tmp_path / "scripts" / "name.sh"
    path.write_text("#!/bin/bash\npython a.py --lr 0.2 --flag --T=20  # --T 5\n\npython a.py \\\n--lr 0.1\n")
    first, second = released.commands(tmp_path, "name")
    assert (first, second) == ({"lr": "0.2", "flag": "", "T": "20"}, {"lr": "0.1"})
    with pytest.raises(ValueError):
        released.script(tmp_path, "name")


def test_an_expression_of_a_file_is_evaluated_as_it_is(tmp_path):
    (tmp_path / "file.py").write_text("def main(args):\n    for epoch in range(3):\n        h = args.k * epoch\n")
    h = released.expression(tmp_path, "file.py", "h")
    assert h(args=SimpleNamespace(k=0.5), epoch=3) == 1.5


def test_the_weights_before_an_image_go_there_and_back():
    weight, bias = np.random.default_rng(0).normal(size=(3 * 4 * 4, 5)), np.zeros(3 * 4 * 4)
    kernel = networks.projection(weight, bias, channels=3)["kernel"]
    assert kernel.shape == (5, 48) and not np.array_equal(kernel.T, weight)
    np.testing.assert_array_equal(networks.weight_of_projection(kernel, channels=3), weight)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("dfkd", "ADADFKD={} has no datafree/synthesis/adadfkd.py; expected a checkout of ljrprocc/DFKD"),
        (
            "fast_datafree",
            "FASTDFKD={} has no datafree/synthesis/fast_meta_imagenet.py; expected a checkout of zju-",
        ),
    ],
)
def test_a_folder_without_a_newer_release_is_refused(tmp_path, load, message):
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path))):
        getattr(released, load)(tmp_path)


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
