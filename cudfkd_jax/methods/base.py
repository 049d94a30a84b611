"""The contract between a distillation method and the rest: how it is described, built and run.

The training loop calls the functions of a `Method`; whatever else is known of it is in its `MethodSpec`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from cudfkd_jax.methods.context import MethodContext, MethodSettings
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis

# (aux, teacher, key, step, axis) -> aux
RoundHook = Callable[[Any, FrozenClassifier, jax.Array, jax.Array, Axis], Any]

Recipe = Mapping[str, Mapping[str, Any]]  # section -> key -> value


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
        student_loss: `(student_outputs, teacher_outputs, aux, step, axis) -> (loss, metrics)`, `loss` the mean
            over this device's part of the batch; `aux` is a constant of the student's gradient.
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
    student_loss: StudentLoss
    preview: Callable[[Any, jax.Array, int], jax.Array]
    begin: RoundHook | None = None
    finish: RoundHook | None = None
    student_capture: tuple[str, ...] = ()


class RecipeContext(NamedTuple):
    """What a recipe may depend on.

    Attributes:
        teacher, student: architectures.
        num_classes, synthesis_steps: numbers that may still be overridden; arithmetic on them yields values that
            follow.
    """

    teacher: str
    student: str
    num_classes: Any
    synthesis_steps: Any


def _accept(settings: MethodSettings) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """Describes a method.

    Attributes:
        name: identifier; also names the section of its own settings.
        label: name in tables.
        build: builds the method; raises `UserError` for settings that do not go together.
        recipe: changes to the default configuration, the settings of the method's release or benchmark.
        settings: declaration of the method's own settings (see `setting`), or None.
        check: raises `UserError` for settings that the method cannot take, before any network is built.
        needs_batch_norm: whether the method is defined by the teacher's BatchNorm statistics.
        pooled: whether the student is trained on crops and flips of a pool of images, one batch per round.
        reads: settings of other sections that only some methods read; the others refuse them. The average of a
            generator, a memory, the mask of Eq. 4, and the test of Eq. 8, which needs self-paced weights.
        replays: whether every student batch holds an eighth of past images, as with a memory.
        memory_settings: the method's own settings on which the use of memory depends.
    """

    name: str
    label: str
    build: Callable[[MethodContext], Method]
    recipe: Recipe | Callable[[RecipeContext], Recipe] = dataclasses.field(default_factory=dict)
    settings: type | None = None
    check: Callable[[MethodSettings], None] = _accept
    needs_batch_norm: bool = False
    pooled: bool = False
    reads: tuple[str, ...] = ()
    replays: bool = False
    memory_settings: tuple[str, ...] = ()

    def recipe_for(self, context: RecipeContext) -> Recipe:
        """Returns the recipe for a pair of networks and a data set."""
        return self.recipe(context) if callable(self.recipe) else self.recipe
