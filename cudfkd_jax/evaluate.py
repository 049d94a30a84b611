"""Exact evaluation: every test image counts once, whatever the batch size and the number of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from cudfkd_jax.capture import Classifier, Variables
from cudfkd_jax.data import Split
from cudfkd_jax.metrics import evaluation_metrics
from cudfkd_jax.parallel import Axis, Devices
from cudfkd_jax.steps import RunState

Predict = Callable[[Any, np.ndarray], np.ndarray]


def make_predict(classifier: Classifier, devices: Devices, batch_size: int) -> Predict:
    """A function from replicated variables and uint8 images `[N, H, W, C]` to logits `[N, classes]`.

    Images go through in batches of `batch_size` (rounded up to a multiple of the devices), the last one padded
    with zeros whose logits are dropped.
    """
    count = len(devices.devices)
    batch_size = -(-batch_size // count) * count

    def forward(variables: Variables, images: jax.Array, axis: Axis) -> jax.Array:
        return classifier(variables, images.astype(jnp.float32) / 255, axis=axis).value

    compiled = devices.compile(forward, donate_state=False)

    def predict(variables: Any, images: np.ndarray) -> np.ndarray:
        logits = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            logits.append(devices.join(compiled(variables, devices.split(_pad(batch, batch_size))))[: len(batch)])
        return np.concatenate(logits)

    return predict


def make_evaluate(
    network: Classifier,
    devices: Devices,
    batch_size: int,
    test: Split,
    teacher_logits: np.ndarray | None = None,
) -> Callable[[RunState], dict[str, float]]:
    """A function from a run state (one copy) to the test metrics of its student; see `evaluate`."""
    predict = make_predict(network, devices, batch_size)

    def measure(state: RunState) -> dict[str, float]:
        logits = predict(devices.replicate(state.student.variables), test.images)
        return evaluate(logits, test.labels, teacher_logits)

    return measure


def evaluate(
    student_logits: np.ndarray,
    labels: np.ndarray | None,
    teacher_logits: np.ndarray | None = None,
    *,
    batch_size: int = 2048,
) -> dict[str, float]:
    """Test metrics of logits `[N, classes]` against labels `[N]` and a teacher's logits, as far as given.

    Returns:
        acc1, acc5 (above 5 classes) and agree1 in percent, loyalty and loyalty_released; see `metrics`.
    """
    collection, update = _collection(student_logits.shape[1], labels is not None, teacher_logits is not None)
    given = {"student_logits": student_logits, "labels": labels, "teacher_logits": teacher_logits}
    total = collection.empty()
    for start in range(0, len(student_logits), batch_size):
        rows = slice(start, start + batch_size)
        batch = {name: values[rows] for name, values in given.items() if values is not None}
        mask = np.ones(len(batch["student_logits"]), bool)
        total = update(total, **{k: _pad(v, batch_size) for k, v in {**batch, "mask": mask}.items()})
    return {name: float(value) for name, value in total.compute().items()}


@functools.cache
def _collection(
    num_classes: int, with_labels: bool, with_teacher: bool
) -> tuple[type[metrics.Collection], Callable[..., Any]]:
    collection = evaluation_metrics(num_classes, with_labels=with_labels, with_teacher=with_teacher)
    return collection, jax.jit(lambda total, **batch: total.merge(collection.single_from_model_output(**batch)))


def _pad(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows, [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1))
