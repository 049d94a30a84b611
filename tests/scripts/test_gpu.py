"""Tests of the GPU session: its time limit, results and figures."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from cudfkd_jax.config import loading, validate
from cudfkd_jax.methods import METHODS
from gpu import checks, cifar10, command, kernels, runs, sizes
from gpu.command import Step
from gpu.session import Session, StepFailedError


def _session(folder, **changes):
    given = {"minutes": 0.0, "key": "commit | card", "smoke": True, "platform": "cpu", "data": ()}
    return Session(out=folder / "out", scratch=folder / "scratch", carried=folder / "carried", **(given | changes))


def test_a_child_over_its_time_may_save(tmp_path):
    session = _session(tmp_path)
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(3)))\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    child = session.start("child", "-c", program)
    while "begun" not in child.lines():
        time.sleep(0.05)
    with pytest.raises(StepFailedError, match="child: exit status 3: saved"):
        session.expect(child, "child", seconds=0.1)
    assert "    | saved" in (session.out / "log.txt").read_text()


def test_output_may_go_to_a_separate_file(tmp_path):
    session, out = _session(tmp_path), tmp_path / "out.json"
    child = session.call("child", "-c", "import sys; print('{}'); print('said', file=sys.stderr)", out=out)
    assert (out.read_text(), child.said()) == ("{}\n", "said")


def test_steps_with_a_result_are_skipped(tmp_path, capsys):
    done = []

    def run(session):
        done.append(session)
        return {"ok": True, "figure": len(done)}

    step = Step(run, lambda result: f"figure {result['figure']}", 0)
    command._do(_session(tmp_path), "step", step)
    command._do(_session(tmp_path), "step", step)
    assert len(done) == 1 and "already complete" in capsys.readouterr().out
    command._do(_session(tmp_path, key="another commit | card"), "step", step)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [result["step"]["figure"] for result in results.values()] == [1, 2]


def test_results_that_were_carried_there_count(tmp_path):
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried/results.json").write_text(json.dumps({"commit | card": {"speed": {"ok": True}}}))
    assert _session(tmp_path).result("speed") == {"ok": True}


def test_a_failed_step_reports_its_error_and_the_next_one_starts(tmp_path, capsys):
    def fail(session):
        raise StepFailedError("no teacher")

    session = _session(tmp_path)
    command._do(session, "step", Step(fail, str, 0))
    assert "step: failed: no teacher" in capsys.readouterr().out and session.result("step") is None


def test_a_step_without_enough_time_is_skipped(tmp_path, capsys):
    session = _session(tmp_path, minutes=1.0, smoke=False)
    command._do(session, "step", Step(lambda s: pytest.fail("started"), str, 90))
    assert "step: skipped, " in capsys.readouterr().out


@pytest.mark.parametrize("pair", [sizes.FLAGSHIP, sizes.TABLE_V, sizes.pair(sizes.FLAGSHIP, smoke=True)])
def test_every_run_has_a_valid_configuration(pair):
    for method in METHODS:
        of_method = pair.of_method(method)
        config = loading.load(of_method.config)
        changes = [change for change in of_method.changes if method == "cudfkd" or "batch_size=256" not in change]
        loading.override(config, [*changes, *of_method.teacher])
        validate.check(config)


def test_the_cheapest_methods_come_first_and_none_is_left_out():
    assert sorted(runs._CHEAPEST_FIRST) == sorted(METHODS)


def test_jpegs_are_decoded_in_their_order(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (7, 3), np.uint8)
    files = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(map(int, colour))).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_lengths"] = np.array(list(map(len, files)), np.int32)
        arrays[f"{split}_labels"] = np.arange(7)
    np.savez(tmp_path / "jpeg.npz", **arrays)
    cifar10.unpack(tmp_path / "jpeg.npz", tmp_path / "cifar10.npz")
    with np.load(tmp_path / "cifar10.npz") as unpacked:
        assert np.abs(unpacked["x_train"].mean((1, 2)) - colours).max() < 4
        assert unpacked["y_test"].tolist() == list(range(7))


def test_gradients_are_compared_by_their_norms():
    reference = {"loss a": np.float32(2.0), "gradient w": np.ones(4), "gradient b": np.full(4, 1e-2)}
    reference |= {"rounding gradient w": np.float32(1e-6), "rounding gradient b": np.float32(1e-4)}
    exact = checks.compare(reference, reference)
    assert exact["ok"] and exact["loss"] == exact["gradient"] == 0
    off = reference | {"gradient w": np.full(4, 1.02)}
    assert not checks.compare(off, reference)["ok"]
    cancelling = checks.compare(reference | {"gradient b": np.full(4, 1.03e-2)}, reference)
    assert cancelling["ok"] and cancelling["cancelling"] == {"gradient b": pytest.approx(0.03)}
    assert not checks.compare(reference | {"gradient b": np.full(4, 2e-2)}, reference)["ok"]
    assert not checks.compare(reference | {"loss a": np.float32(2.01)}, reference)["ok"]


def test_kernels_are_summed_by_kind_and_name():
    traced = [("sm90_xmma_fprop_1", 0, 4e6), ("loop_add_fusion_7", 4e6, 6e6), ("loop_add_fusion_9", 7e6, 8e6)]
    summary = kernels.summarise(traced)  # over two rounds
    assert summary["kinds_ms"] == {"convolution, product": 2.0, "fusion": 1.5}
    assert summary["longest_ms"]["loop_add_fusion"] == 1.5
    assert summary["idle"] == pytest.approx(1 / 8) and summary["span_ms"] == 4.0


def test_accuracy_is_shown_by_minute(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"epoch": i, "step": 10 * i, "acc1": 50.0 + i, "agree1": 60.0, "seconds": 29.0} for i in (1, 2)]
    path.write_text("".join(json.dumps(r | {"evaluation_seconds": 1.0}) + "\n" for r in records))
    rows = runs._by_time(path)
    assert [(row["minute"], row["acc1"]) for row in rows] == [(0.5, 51.0), (1.0, 52.0)]
    assert runs._by_time(tmp_path / "none.jsonl") == []
