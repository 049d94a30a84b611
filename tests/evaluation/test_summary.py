"""Tests of the summary of a completed run."""

import numpy as np
import pytest

from cudfkd_jax.evaluation.summary import RunDescription, describe, distill_summary, table
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


def test_the_best_student_is_one_student():
    summary = _summary(1, every=2)  # measured after epochs 2, 4 and 5
    expected = {"acc1": 90.0, "acc5": 99.0, "agree1": 91.0, "loyalty": 0.9, "loyalty_released": 0.5}
    assert summary["student_best"] == {"epoch": 4, **expected}


def test_the_description_begins_with_what_was_reached():
    assert describe(_summary(1)).splitlines()[:9] == [
        "1.2× smaller, 84.2 % of the teacher's accuracy",
        "",
        "                    teacher  student  student_best",
        "network             wrn16_2  wrn16_1       wrn16_1",
        "parameters                7        6             6",
        "acc@1 %               95.00    80.00         90.00",
        "acc@5 %              100.00    99.00         99.00",
        "agree@1 %                      81.00         91.00",
        "loyalty                       0.8000        0.9000",
    ]
    assert "student_best: after epoch 4, the best acc@1 on the test images" in describe(_summary(1))


def test_of_an_earlier_summary_only_the_best_students_own_maxima_are_shown():
    summary = _summary(1)
    del summary["student_best"]
    summary["student"] |= {"acc5_best_epoch": 2, "loyalty_best": 0.95, "loyalty_best_epoch": 5}
    rows = {line[:18].rstrip(): line.split()[-1] for line in describe(summary).splitlines()[3:10]}
    assert (rows["acc@1 %"], rows["agree@1 %"]) == ("90.00", "91.00")
    assert (rows["acc@5 %"], rows["loyalty"]) == ("99.00", "0.8000")  # of the last student


@pytest.mark.parametrize(
    ("teacher", "text"),
    [(6, "as large as the teacher"), (3, "2.0× larger"), (24, "4.0× smaller"), (0, "84.2 %")],
)
def test_sizes_are_compared_with_the_teachers(teacher, text):
    summary = _summary(1)
    summary["teacher"]["parameters"] = teacher
    assert describe(summary).startswith(text)


def test_without_test_images_no_accuracy_is_claimed():
    summary = _summary(1)
    summary["student"] = {"arch": "wrn16_1", "parameters": 6, "agree1_synthetic": 86.1, "loyalty_synthetic": 0.9}
    first, *others = describe(summary).splitlines()
    assert first == "1.2× smaller, 86.1 % agreement"
    assert others[-1] == "agreement on held-out synthetic images, not on real ones; no accuracy is known"


@pytest.mark.parametrize(
    "names", [["teacher", "student", "student_best", "scratch", "kd"], ["teacher", "student"]]
)
def test_tables_fit_80_columns(names):
    metrics = {"acc1": 100.0, "acc5": 100.0, "agree1": 100.0, "loyalty": 0.5, "loyalty_released": 0.5}
    network = {"arch": "a_package.of_mine.with.modules.in_it:ANetworkOfMine", "parameters": 21_282_122, **metrics}
    lines = table(dict.fromkeys(names, network)).splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].split() == names
    assert lines[1].count("…") == lines[1].count("OfMine") == len(names)
    assert len({len(line) for line in lines}) == 1
