"""Tests of the summary of a completed run."""

import numpy as np
import pytest

from cudfkd_jax.evaluation.summary import RunDescription, describe, distill_summary
from cudfkd_jax.runtime.devices import local_devices

ACC1 = [10.0, 50.0, 80.0, 90.0, 80.0]


def _record(epoch: int, acc1: float) -> dict:
    scores = {"acc1": acc1, "acc5": 99.0, "agree1": acc1 + 1, "loyalty": acc1 / 100, "loyalty_released": 0.5}
    times = {"seconds": 100.0 if epoch == 1 else 2.0, "evaluation_seconds": 1.0}
    return {"epoch": epoch, **scores, **times, "images_per_s": 8.0 if epoch == 1 else 400.0}


def _summary(from_epoch: int, every: int = 1) -> dict:
    history = [_record(epoch, acc1) for epoch, acc1 in enumerate(ACC1, 1)]
    history = [r if r["epoch"] % every == 0 or r["epoch"] == 5 else {**r} for r in history]
    for record in history:
        if record["epoch"] % every and record["epoch"] != 5:
            for key in ("acc1", "acc5", "agree1", "loyalty", "loyalty_released"):
                del record[key]
    return distill_summary(
        run=RunDescription("digits", 0, "float32", "cudfkd", from_epoch),
        history=history,
        teacher={"arch": "wrn16_2", "parameters": 7, "acc1": 95.0, "acc5": 100.0},
        student={"arch": "wrn16_1", "parameters": 6},
        devices=local_devices(1),
    )


def test_best_and_last_are_kept_apart():
    summary = _summary(1)
    student = summary["student"]
    assert (student["acc1_last"], student["acc1_best"], student["acc1_best_epoch"]) == (80.0, 90.0, 4)
    assert (student["agree1"], student["agree1_best"], student["parameters"]) == (81.0, 91.0, 6)
    assert summary["teacher"] == {"arch": "wrn16_2", "parameters": 7, "acc1": 95.0, "acc5": 100.0}
    assert summary["wall_s"] == 113.0
    assert summary["images_per_s"] == 400.0  # the epoch with the compilation is excluded
    assert 10 < summary["peak_memory_mib"]["host"] < 100_000


@pytest.mark.parametrize(("from_epoch", "every", "values"), [(1, 1, ACC1), (3, 1, ACC1[2:]), (3, 2, [90.0, 80.0])])
def test_stability_counts_epochs_from_one_and_only_measured_ones(from_epoch, every, values):
    stability = _summary(from_epoch, every)["stability"]
    assert stability == {"mean": np.mean(values), "variance": np.var(values), "from_epoch": from_epoch}


def test_a_run_that_is_too_short_has_no_stability():
    summary = _summary(80)
    assert summary["stability"] == {"mean": None, "variance": None, "from_epoch": 80}
    assert "no such epoch" in describe(summary)
