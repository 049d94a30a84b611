"""Metrics of a student: Acc@1, Acc@5, Agree@1 and probability loyalty (Li et al., Eq. 14-16).

Each has a per-example function. Clu collections average them exactly over a test set whose last batch may be
padded; padded rows are masked out and may hold any values.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import Array

from cudfkd_jax.models.layers import at_least_float32
from cudfkd_jax.objectives import losses


def top_k_correct(student_logits: Array, labels: Array, k: int) -> Array:
    """Returns whether the label is among the k largest logits (k = 1: the summand of Eq. 14).

    Args:
        student_logits: `[B, C]`.
        labels: `[B]` integers in [0, C).
        k: number of classes considered, 1 <= k <= C; ties go to the lower class.

    Returns:
        `[B]` bool.
    """
    _, classes = jax.lax.top_k(student_logits, k)
    return jnp.any(classes == labels[:, None], axis=-1)


def agreement(student_logits: Array, teacher_logits: Array) -> Array:
    """Returns whether student and teacher predict the same class, the summand of Eq. 15.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.

    Returns:
        `[B]` bool.
    """
    return jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)


def probability_loyalty(student_logits: Array, teacher_logits: Array) -> Array:
    """Computes L_p = 1 − √D_JS of the two softmax outputs at temperature 1, natural logarithm (Eq. 16).

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.

    Returns:
        `[B]` in [1 − √ln 2, 1], which is [0.167, 1]; 1 for equal outputs.
    """
    return 1 - jnp.sqrt(losses.js_divergence(student_logits, teacher_logits, 1.0))


def probability_loyalty_released(student_logits: Array, teacher_logits: Array) -> Array:
    """Computes 1 − √(√D_JS), the loyalty of the released code and of the paper's tables.

    The released code takes the root of SciPy's `jensenshannon`, which is a root already, of both outputs with 1e-8
    added (and normalised to sum to 1, as in SciPy).

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.

    Returns:
        `[B]` in [1 − ⁴√ln 2, 1], which is [0.0875, 1]; 1 for equal outputs.
    """
    divergence = losses.jensen_shannon(_smoothed(student_logits), _smoothed(teacher_logits))
    return 1 - jnp.sqrt(jnp.sqrt(divergence))


@functools.cache
def evaluation_metrics(
    num_classes: int, *, with_labels: bool = True, with_teacher: bool = True
) -> type[metrics.Collection]:
    """Returns the collection of test metrics: acc1, acc5 (above 5 classes), and with a teacher agree1 and loyalty.

    Its model outputs are `student_logits` `[B, C]`, `mask` `[B]` bool (False: padding), with labels also `labels`
    `[B]`, and with a teacher `teacher_logits` `[B, C]`. `compute()` returns acc1, acc5 and agree1 in percent, and
    loyalty (Eq. 16) and loyalty_released as means in [0, 1]; NaN if no row is unmasked.

    Args:
        num_classes: C.
        with_labels: whether to include acc1 and acc5.
        with_teacher: whether to include agree1, loyalty and loyalty_released.

    Returns:
        The collection's type, the same object for the same arguments.
    """
    chosen: dict[str, type[metrics.Metric]] = {}
    if with_labels:
        chosen["acc1"] = _accuracy(1)
    if with_labels and num_classes > 5:
        chosen["acc5"] = _accuracy(5)
    if with_teacher:
        chosen["agree1"] = _against_teacher(Percentage, agreement)
        chosen["loyalty"] = _against_teacher(Mean, probability_loyalty)
        chosen["loyalty_released"] = _against_teacher(Mean, probability_loyalty_released)
    return metrics.Collection.create(**chosen)


@flax.struct.dataclass
class Mean(metrics.Metric):
    """The mean over unmasked rows, from a compensated running sum.

    Ten thousand loyalties sum to about 9,000, where float32 has a spacing of 1e-3; `correction` accumulates the
    rounding error of each addition (Knuth's two-sum). All three fields may be summed over devices.
    """

    total: Array
    correction: Array
    count: Array

    @classmethod
    def empty(cls) -> "Mean":
        """Returns the empty mean, the identity of `merge`."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    @classmethod
    def from_model_output(cls, values: Array, mask: Array | None = None, **_) -> "Mean":
        """Sums and counts `values` `[B]` (bool or float) where `mask` `[B]` is True (None: everywhere)."""
        if mask is None:
            mask = jnp.ones(values.shape, bool)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        total = jnp.sum(jnp.where(mask, values, 0))
        return cls(total, jnp.zeros_like(total), jnp.sum(mask, dtype=jnp.int32))

    def merge(self, other: "Mean") -> "Mean":
        """Returns the metric over both sets of rows."""
        total = self.total + other.total
        added = total - self.total
        rounded_off = (self.total - (total - added)) + (other.total - added)
        correction = self.correction + other.correction + rounded_off
        return type(self)(total, correction, self.count + other.count)

    def compute(self) -> Array:
        """Returns the mean, `[]`; NaN without unmasked rows."""
        return (self.total + self.correction) / self.count


@flax.struct.dataclass
class Percentage(Mean):
    """The percentage of unmasked rows that are True."""

    def compute(self) -> Array:
        """Returns the percentage, `[]` in [0, 100]; NaN without unmasked rows."""
        return 100 * (self.total + self.correction) / self.count


class Stability(NamedTuple):
    """Mean and variance of Acc@1 over the later epochs of a run, in percent and percent²."""

    mean: float
    variance: float


def stability(acc1: Sequence[float]) -> Stability:
    """Computes the mean and variance of Acc@1 over epochs, which measure training stability (Table V).

    The paper does not specify its variance; this is the population variance (divided by n).

    Args:
        acc1: Acc@1 in percent after each epoch included, at least one.

    Returns:
        Mean and variance, computed in float64.
    """
    values = np.asarray(acc1, np.float64)
    return Stability(mean=float(values.mean()), variance=float(values.var()))


def _accuracy(k: int) -> type[metrics.Metric]:
    return Percentage.from_fun(lambda student_logits, labels, **_: top_k_correct(student_logits, labels, k))


def _against_teacher(kind: type[Mean], per_example) -> type[metrics.Metric]:
    return kind.from_fun(lambda student_logits, teacher_logits, **_: per_example(student_logits, teacher_logits))


def _smoothed(logits: Array) -> Array:
    p = jax.nn.softmax(at_least_float32(logits), axis=-1) + 1e-8
    return jnp.log(p / jnp.sum(p, axis=-1, keepdims=True))
