"""The contract between a distillation method and the loop, which never asks which method it runs."""

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
    steps, each on images from `sample`. All state of the method is in `aux`, a pytree that the loop treats as
    opaque and that every device holds whole and alike, also what belongs to a batch (pixels, latents). Images
    are float `[B / axis.size, H, W, C]`, in [0, 1] or, of generators whose output is normalised already, near
    it. What is drawn is drawn for the whole batch from one key and cut with `axis.shard`; batch-wide means go
    through `axis.mean`, and whole batches come from `axis.gather`. `step` is the student step counter.

    Attributes:
        init: `(key) -> aux`.
        synthesise: `(aux, teacher, student, key, step, axis) -> (aux, metrics)`, one synthesis step; `teacher`
            and `student` are `FrozenClassifier`s.
        sample: `(aux, teacher, key, axis) -> images`, what the student is trained on; as many in each step.
        student_loss: `(student_outputs, teacher_outputs, step, axis) -> (loss, metrics)`, `loss` the mean
            over this device's part of the batch.
        preview: `(aux, key, count) -> images [count, H, W, C]` to look at, and to measure agreement on where
            there are no data: none that the student is trained on.
        begin: before the synthesis steps of a round; None where there is nothing to do.
        finish: after them; None where there is nothing to do.
        student_capture: what of both networks' outputs `student_loss` looks at besides the logits; see
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
