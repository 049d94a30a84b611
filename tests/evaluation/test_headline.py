"""Tests of the headline: what is said of a student beside its teacher, and what is left out."""

import math

import pytest

from cudfkd_jax.evaluation.headline import headline, size

_TEACHER = {"arch": "wrn16_2", "parameters": 691_386, "acc1": 99.72}
_STUDENT = {"parameters": 174_778, "acc1": 99.16, "agree1": 98.9}


def test_size_accuracy_and_agreement_come_with_their_numbers():
    assert headline(_TEACHER, _STUDENT) == [
        ("4.0× smaller", "174,778 of 691,386 parameters"),
        ("99.4 % of the teacher's accuracy", "student 99.16 %, teacher 99.72 %, on the test images"),
        ("98.9 % agreement", "of student and teacher on the test images"),
    ]


def test_without_test_images_no_accuracy_is_claimed():
    ((text, detail),) = headline({"parameters": 9}, {"agree1_synthetic": 86.14})
    assert (text, detail) == ("86.1 % agreement", "of student and teacher on the held-out synthetic images")


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, "99", [1], True])
def test_what_is_no_number_is_left_out(wrong):
    assert headline(_TEACHER, {"parameters": wrong, "acc1": wrong, "agree1": wrong}) == []
    assert headline({"parameters": wrong, "acc1": wrong}, _STUDENT)[0][0] == "98.9 % agreement"


@pytest.mark.parametrize(
    ("teacher", "student", "text"),
    [(400, 100, "4.0× smaller"), (100, 130, "1.3× larger"), (7, 7, "as large")],
)
def test_a_larger_student_is_called_larger(teacher, student, text):
    assert size(teacher, student) == text
