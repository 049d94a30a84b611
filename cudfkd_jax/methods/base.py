"""The contract between a distillation method and the loop, which never asks which method it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cudfkd_jax.capture import Outputs
from cudfkd_jax.parallel import Axis

Metrics = dict[str, jax.Array]  # scalars; loss terms under names that contain "loss"

# A frozen network in evaluation mode, called as net(images [B, H, W, C] in [0, 1], capture=...).
FrozenClassifier = Callable[..., Outputs]


class Method(NamedTuple):
    """Pure functions of a data-free distillation method.

    A round is `synthesis_steps` calls of `synthesise` followed by `student_steps` student steps, each on
    images from `sample`. All state of the method is in `aux`, a pytree that the loop treats as opaque.
    Images are float `[B / axis.size, H, W, C]` in [0, 1]; batch-wide means and slices go through `axis`.

    Attributes:
        init: `(key) -> aux`.
        synthesise: `(aux, teacher, student, key, step, axis) -> (aux, metrics)`, one synthesis step; `teacher`
            and `student` are `FrozenClassifier`s, `step` is the student step counter.
        sample: `(aux, key, axis) -> images`, what the student is trained on.
        student_loss: `(student_outputs, teacher_outputs, step, axis) -> (loss, metrics)`, `loss` the mean
            over this device's part of the batch.
        preview: `(aux, key, count) -> images [count, H, W, C]` to look at.
    """

    init: Callable[[jax.Array], Any]
    synthesise: Callable[..., tuple[Any, Metrics]]
    sample: Callable[[Any, jax.Array, Axis], jax.Array]
    student_loss: Callable[[Outputs, Outputs, jax.Array, Axis], tuple[jax.Array, Metrics]]
    preview: Callable[[Any, jax.Array, int], jax.Array]
