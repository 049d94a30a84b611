"""The contract between a distillation method and the training loop, which is independent of the method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis

# (aux, teacher, key, step, axis) -> aux
RoundHook = Callable[[Any, FrozenClassifier, jax.Array, jax.Array, Axis], Any]


class Method(NamedTuple):
    """Pure functions of a data-free distillation method.

    A round is `begin`, `synthesis_steps` calls of `synthesise`, `finish`, and then `student_steps` student
    steps, each on images from `sample`. All state of the method, including that of a batch (pixels, latents), is
    in `aux`, a pytree that is opaque to the loop and replicated on every device. Images are float
    `[B / axis.size, H, W, C]`, in [0, 1] or, from generators with normalised output, near it. Random draws are
    made for the whole batch from one key and split with `axis.shard`; batch-wide means use `axis.mean`, and
    `axis.gather` assembles whole batches. `step` is the student step counter.

    Attributes:
        init: `(key) -> aux`.
        synthesise: `(aux, teacher, student, key, step, axis) -> (aux, metrics)`, one synthesis step; `teacher`
            and `student` are `FrozenClassifier`s.
        sample: `(aux, teacher, key, axis) -> images`, the student's training images, the same number in each step.
        student_loss: `(student_outputs, teacher_outputs, step, axis) -> (loss, metrics)`, `loss` the mean
            over this device's part of the batch.
        preview: `(aux, key, count) -> images [count, H, W, C]`, disjoint from the student's training images; for
            inspection and, without data, for measuring agreement.
        begin: `RoundHook` before a round's synthesis steps, or None.
        finish: `RoundHook` after a round's synthesis steps, or None.
        student_capture: outputs of both networks, besides the logits, that `student_loss` needs; see
            `capture.apply`.
    """

    init: Callable[[jax.Array], Any]
    synthesise: Callable[..., tuple[Any, Metrics]]
    sample: Callable[[Any, FrozenClassifier, jax.Array, Axis], jax.Array]
    student_loss: Callable[[Outputs, Outputs, jax.Array, Axis], tuple[jax.Array, Metrics]]
    preview: Callable[[Any, jax.Array, int], jax.Array]
    begin: RoundHook | None = None
    finish: RoundHook | None = None
    student_capture: tuple[str, ...] = ()
