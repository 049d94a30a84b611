"""Exact evaluation: every test image counts once, for any batch size and number of devices."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from cudfkd_jax.data import Split
from cudfkd_jax.evaluation.metrics import evaluation_metrics
from cudfkd_jax.models.capture import Variables
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import Axis, Devices
from cudfkd_jax.training.state import RunState

Logits = Callable[[], np.ndarray]  # blocks until they are ready
Predict = Callable[[Any, np.ndarray], Logits]

_BATCHES_AHEAD = 16


def make_predict(classifier: Classifier, devices: Devices, batch_size: int) -> Predict:
    """Returns a function from replicated variables and uint8 images `[N, H, W, C]` to `Logits`.

    `Logits` is a callable that blocks until the logits `[N, classes]` are ready. Batches have `batch_size` images,
    rounded up to a multiple of the number of devices; the last one is padded with zeros, whose logits are dropped.
    """
    count = len(devices.devices)
    batch_size = -(-batch_size // count) * count

    def forward(variables: Variables, images: jax.Array, axis: Axis) -> jax.Array:
        return classifier(variables, images.astype(jnp.float32) / 255, axis=axis).value

    compiled = devices.compile(forward, donate_state=False)

    # XLA's CPU backend runs independent batches concurrently and so needs memory for all of them.
    most = 1 if devices.devices[0].platform == "cpu" else _BATCHES_AHEAD

    def predict(variables: Any, images: np.ndarray) -> Logits:
        logits: list[np.ndarray] = []
        on_the_way: deque[jax.Array] = deque()

        def collect() -> None:
            logits.append(devices.join(on_the_way.popleft()))

        def wait() -> np.ndarray:
            while on_the_way:
                collect()
            return np.concatenate(logits)[: len(images)]

        for start in range(0, len(images), batch_size):
            if len(on_the_way) == most:
                collect()
            batch = _pad(images[start : start + batch_size], batch_size)
            on_the_way.append(compiled(variables, devices.split(batch)))
        return wait

    return predict


def make_evaluate(
    network: Classifier,
    devices: Devices,
    batch_size: int,
    test: Split,
    teacher_logits: np.ndarray | None = None,
) -> Callable[[RunState], Callable[[], dict[str, float]]]:
    """Returns a function from a run state (one copy) to a callable that blocks until its metrics are ready."""
    predict = make_predict(network, devices, batch_size)

    def measure(state: RunState) -> Callable[[], dict[str, float]]:
        logits = predict(devices.replicate(state.student.variables), test.images)
        return lambda: evaluate(logits(), test.labels, teacher_logits)

    return measure


def evaluate(
    student_logits: np.ndarray,
    labels: np.ndarray | None,
    teacher_logits: np.ndarray | None = None,
    *,
    batch_size: int = 2048,
) -> dict[str, float]:
    """Computes test metrics of logits `[N, classes]` against labels `[N]` and a teacher's logits, if given.

    Returns:
        acc1, acc5 (above 5 classes) and agree1 in percent, loyalty and loyalty_released; see `metrics`.
    """
    collection, update = _collection(student_logits.shape[1], labels is not None, teacher_logits is not None)
    given = {"student_logits": student_logits, "labels": labels, "teacher_logits": teacher_logits}
    with _on_the_host():
        total = collection.empty()
        for start in range(0, len(student_logits), batch_size):
            rows = slice(start, start + batch_size)
            batch = {name: values[rows] for name, values in given.items() if values is not None}
            mask = np.ones(len(batch["student_logits"]), bool)
            total = update(total, **{k: _pad(v, batch_size) for k, v in {**batch, "mask": mask}.items()})
        return {name: float(value) for name, value in total.compute().items()}


def _on_the_host() -> contextlib.AbstractContextManager[Any]:
    """Selects the CPU backend, if JAX has one, as other devices may be busy with the next epoch."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS excludes it
        return contextlib.nullcontext()


@functools.cache
def _collection(
    num_classes: int, with_labels: bool, with_teacher: bool
) -> tuple[type[metrics.Collection], Callable[..., Any]]:
    collection = evaluation_metrics(num_classes, with_labels=with_labels, with_teacher=with_teacher)
    return collection, jax.jit(lambda total, **batch: total.merge(collection.single_from_model_output(**batch)))


def _pad(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows, [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1))
