"""Tests that evaluation is exact for every batch size."""

import jax
import nets
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from cudfkd_jax.data import Split
from cudfkd_jax.evaluation.predict import evaluate, make_evaluate, make_predict
from cudfkd_jax.runtime.devices import local_devices


@pytest.fixture(scope="module", name="test_set")
def _test_set():
    random = np.random.default_rng(0)
    return Split(random.integers(0, 256, (37, *nets.IMAGE_SHAPE), np.uint8), random.integers(0, 10, 37, np.int32))


@jax.jit
def _logits(variables, images):
    return nets.classifier(8)(variables, images).value


@pytest.mark.parametrize("batch_size", [1, 7, 37, 64])
def test_predictions_do_not_depend_on_the_batch_size(test_set, batch_size):
    variables = nets.teacher_variables()
    logits = make_predict(nets.classifier(8), local_devices(1), batch_size)(variables, test_set.images)()
    expected = _logits(variables, test_set.images.astype(np.float32) / 255)
    assert logits.shape == (37, 10)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [5, 37, 100])
def test_metrics_against_numpy(test_set, batch_size):
    random = np.random.default_rng(1)
    student, teacher = (random.normal(0, 2, (37, 10)).astype(np.float32) for _ in range(2))
    labels = test_set.labels
    found = evaluate(student, labels, teacher, batch_size=batch_size)
    distance = np.array(
        [jensenshannon(p, q) for p, q in zip(softmax(student, 1), softmax(teacher, 1), strict=True)]
    )
    expected = {
        "acc1": 100 * np.mean(student.argmax(1) == labels),
        "acc5": 100 * np.mean((np.argsort(-student, 1)[:, :5] == labels[:, None]).any(1)),
        "agree1": 100 * np.mean(student.argmax(1) == teacher.argmax(1)),
        "loyalty": np.mean(1 - distance),
        "loyalty_released": np.mean(1 - np.sqrt(distance)),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_teacher_there_is_only_accuracy(test_set):
    assert evaluate(np.eye(10)[test_set.labels], test_set.labels) == {"acc1": 100.0, "acc5": 100.0}


def test_a_network_agrees_with_itself(test_set):
    network, variables = nets.classifier(8), nets.teacher_variables()
    logits = make_predict(network, local_devices(1), 16)(variables, test_set.images)()
    state = type("State", (), {"student": type("Student", (), {"variables": variables})})
    found = make_evaluate(network, local_devices(1), 16, test_set, logits)(state)()
    assert (found["agree1"], found["loyalty"]) == (100, 1)
    assert found["acc1"] == pytest.approx(100 * np.mean(logits.argmax(1) == test_set.labels))
    assert jax.tree.structure(found).num_leaves == 5
