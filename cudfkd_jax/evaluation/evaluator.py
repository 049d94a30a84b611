"""Evaluation of a data-free run, on test images if available, otherwise on synthetic images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cudfkd_jax.data import Split
from cudfkd_jax.evaluation import observations
from cudfkd_jax.evaluation.predict import Logits, evaluate, make_predict
from cudfkd_jax.evaluation.summary import SYNTHETIC
from cudfkd_jax.objectives.terms import SampleLoss
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.state import HELD_OUT, RunState, purpose_key

_OBSERVED = 512  # synthetic images whose difficulty is recorded


class StudentEvaluator:
    """Evaluator of the student in a run state (one copy); compiles everything once.

    Attributes:
        teacher_metrics: the teacher's metrics on the test images; empty without test images.
    """

    def __init__(
        self,
        problem: Problem,
        teacher_variables: jax.Array,
        devices: Devices,
        *,
        batch_size: int,
        test: Split | None,
        synthetic_images: int,
    ):
        """Evaluates the teacher.

        Args:
            problem: its method makes the synthetic images.
            teacher_variables: replicated.
            devices: everything is compiled for these.
            batch_size: batch size for predictions.
            test: the test images, or None.
            synthetic_images: number of images on which agreement is measured without `test`.
        """
        predict_teacher = make_predict(problem.teacher, devices, batch_size)
        predict_student = make_predict(problem.student, devices, batch_size)
        self._preview: Callable[..., jax.Array] = jax.jit(problem.method.preview, static_argnums=2)
        self._teacher = lambda images: predict_teacher(teacher_variables, images)
        self._student = lambda state, images: predict_student(devices.replicate(state.student.variables), images)
        self._test, self._synthetic_images = test, synthetic_images
        self._last: tuple[jax.Array, Logits] | None = None
        self.teacher_metrics: dict[str, float] = {}
        if test is not None:
            self._teacher_logits = self._teacher(test.images)()
            self.teacher_metrics = evaluate(self._teacher_logits, test.labels)

    def __call__(self, state: RunState) -> Callable[[], dict[str, float]]:
        """Returns a callable that blocks until the metrics are ready.

        Names of metrics on synthetic images end in `SYNTHETIC`.
        """
        if self._test is None:
            found = self._on_synthetic_images(state)
            return lambda: found
        labels, teacher, student = self._test.labels, self._teacher_logits, self._test_logits(state)
        return lambda: evaluate(student(), labels, teacher)

    def observe(
        self, state: RunState, epoch: int, *, sample_loss: SampleLoss, loss: str, workdir: Path, picture: Path
    ) -> dict[str, Any] | None:
        """Writes the epoch's observations for the report, and a picture of synthetic images by class.

        Of several processes, only the first writes.

        Args:
            state: at the end of the epoch.
            epoch: counted from 1.
            sample_loss: D of Eq. 6.
            loss: its name.
            workdir: the run's workdir.
            picture: the PNG file to write.

        Returns:
            The result of `observations.of_synthetic_images`; None in processes that do not write.
        """
        images = np.asarray(self._held_out(state, _OBSERVED))
        quantised = _quantised(images)
        teacher, student = self._teacher(quantised)(), self._student(state, quantised)()
        on_test = None if self._test is None else self._test_logits(state)()
        if not processes.is_first():
            return None
        observations.save_classes(picture, images, teacher)
        synthetic = observations.of_synthetic_images(images, teacher, student, sample_loss, loss=loss)
        test = None
        if self._test is not None and on_test is not None:
            test = observations.of_test_images(self._teacher_logits, on_test, self._test.labels)
        observations.save(observations.path_of(workdir, epoch), epoch, synthetic, test)
        return synthetic

    def held_out(self, state: RunState) -> jax.Array:
        """Returns the synthetic images on which agreement is measured without test images."""
        return self._held_out(state, self._synthetic_images)

    def _held_out(self, state: RunState, count: int) -> jax.Array:
        return self._preview(state.aux, purpose_key(state.key, HELD_OUT), count)

    def _on_synthetic_images(self, state: RunState) -> dict[str, float]:
        images = _quantised(self.held_out(state))
        found = evaluate(self._student(state, images)(), None, self._teacher(images)())
        return {name + SYNTHETIC: value for name, value in found.items()}

    def _test_logits(self, state: RunState) -> Logits:
        """Returns the test logits, cached per state, as evaluation and observation of an epoch both need them."""
        assert self._test is not None
        if self._last is None or self._last[0] is not state.step:
            self._last = state.step, self._student(state, self._test.images)
        return self._last[1]


def _quantised(images: jax.Array | np.ndarray) -> np.ndarray:
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
