"""Tests that only runs without progress cause warnings."""

import pytest

from cudfkd_jax.evaluation import diagnostics


@pytest.mark.parametrize(
    ("classes", "spread", "expected"),
    [
        ([5, 5, 5, 5], 0.15, []),
        ([19, 1, 0, 0], 0.15, ["95 % of the synthetic images are of class 0 to the teacher"]),
        ([18, 2, 0, 0], 0.15, []),
        (
            [5, 5, 5, 5],
            0.019,
            ["the synthetic images are all alike: a pixel's standard deviation over them is 0.0190"],
        ),
        (
            [0, 20, 0, 0],
            0.0,
            ["the synthetic images are all alike", "100 % of the synthetic images are of class 1"],
        ),
        ([5, 5, 5, 5], None, []),  # recorded by an earlier version
    ],
)
def test_images(classes, spread, expected):
    found = diagnostics.of_images({"classes": classes} | ({} if spread is None else {"spread": spread}))
    assert len(found) == len(expected) and all(f.startswith(e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("accuracies", "classes", "warned"),
    [
        ([9.0, 11.0, 14.9], 10, True),
        ([9.0, 11.0, 15.0], 10, False),  # the student has learnt something
        ([9.0, 30.0, 10.0], 10, False),  # and forgotten it, which the curve shows
        ([9.0, 11.0], 10, False),  # too early to tell
        ([1.2, 0.9, 1.4], 100, True),
        ([50.0, 54.0, 54.9], 2, True),
        ([50.0, 54.0, 55.0], 2, False),  # half as much again is no chance where there are few classes
        ([], 10, False),
    ],
)
def test_student(accuracies, classes, warned):
    for key in ("acc1", "agree1_synthetic"):
        history = [{"epoch": epoch, key: value} for epoch, value in enumerate(accuracies, 1)]
        found = diagnostics.of_student(history, classes)
        assert len(found) == warned
        if warned:
            assert f"{max(accuracies):.2f} % at best after {len(accuracies)} epochs" in found[0]
