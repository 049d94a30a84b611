"""The losses of CuDFKD: divergences between teacher and student (Eq. 4 and 6) and the terms of Eq. 5.

Equations are those of Li et al., "How to Teach: Learning Data-Free Knowledge Distillation From Curriculum".
Logits are `[B, C]`. Per-sample losses are returned as `[B]`; the caller weights, masks and averages them.
Logits below float32 (bfloat16) are computed in float32; float32 and float64 keep their dtype. Divergences are in
nats.
"""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from cudfkd_jax.models.layers import at_least_float32

# (teacher_logits [B, C], student_logits [B, C], temperature) -> [B]
Divergence = Callable[[Array, Array, float], Array]


class BatchStatistics(Protocol):
    """Batch and running statistics of one BatchNorm layer; every field is `[channels]`."""

    @property
    def mean(self) -> Array:
        """Mean of the batch at the layer's input."""

    @property
    def var(self) -> Array:
        """Biased variance of the batch at the layer's input."""

    @property
    def running_mean(self) -> Array:
        """Running mean from the teacher's training."""

    @property
    def running_var(self) -> Array:
        """Running variance from the teacher's training."""


def kl_divergence(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """Computes T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)), the student's loss of Eq. 6 (Hinton et al., 2015).

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.
        temperature: T > 0.

    Returns:
        `[B]`, non-negative up to rounding, summed over the classes.
    """
    log_t = _log_softmax(teacher_logits, temperature)
    log_s = _log_softmax(student_logits, temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)


def l1_distance(teacher_logits: Array, student_logits: Array) -> Array:
    """Computes the mean over the classes of |z_t − z_s|, the released code's student loss for most pairs.

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.

    Returns:
        `[B]`, non-negative.
    """
    return jnp.mean(jnp.abs(at_least_float32(teacher_logits) - at_least_float32(student_logits)), axis=-1)


def js_divergence(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """Computes T²·(½KL(P ‖ M) + ½KL(Q ‖ M)), P and Q the softmax of logits over T, M = (P + Q)/2 (Eq. 4's JS).

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.
        temperature: T > 0.

    Returns:
        `[B]` in [0, T²·ln 2], symmetric in its two arguments.
    """
    log_t = _log_softmax(teacher_logits, temperature)
    log_s = _log_softmax(student_logits, temperature)
    return temperature**2 * jensen_shannon(log_t, log_s)


def jensen_shannon(log_p: Array, log_q: Array) -> Array:
    """Computes ½KL(P ‖ M) + ½KL(Q ‖ M) from log-probabilities, M = (P + Q)/2.

    Args:
        log_p: finite log-probabilities `[..., C]`.
        log_q: the same for the other distribution.

    Returns:
        `[...]` in [0, ln 2]; exactly 0 for equal arguments and with small relative error near 0, which the
        square root in Eq. 16 needs.
    """
    # With x = ½ ln(p/q), a class adds m·(x tanh x − ln cosh x): every term is >= 0, so nothing cancels.
    x = 0.5 * (log_p - log_q)
    size = jnp.abs(x)
    near = size < 1
    x_near = jnp.where(near, x, 0)
    tanh = jnp.tanh(x_near)
    small = x_near * tanh + 0.5 * jnp.log1p(-tanh * tanh)  # ln cosh x = −½ ln(1 − tanh² x)
    decay = jnp.exp(-2 * size)
    large = math.log(2) - jnp.log1p(decay) - 2 * size * decay / (1 + decay)
    m = 0.5 * (jnp.exp(log_p) + jnp.exp(log_q))
    return jnp.sum(m * jnp.where(near, small, large), axis=-1)


def js_divergence_released(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """Computes ½KL(M ‖ P) + ½KL(M ‖ Q) with P, Q and M clamped to [0.01, 0.99]: the released code's `jsdiv`.

    M is the mean of P and Q before clamping; the clamped vectors do not sum to 1, and the factor T² is absent.
    Only for reproducing the released code; the exact divergence is `js_divergence`.

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.
        temperature: T > 0.

    Returns:
        `[B]`, symmetric in its two arguments; may be negative.
    """
    p = jnp.exp(_log_softmax(teacher_logits, temperature))
    q = jnp.exp(_log_softmax(student_logits, temperature))
    m = 0.5 * (p + q)
    p, q, m = (jnp.clip(x, 0.01, 0.99) for x in (p, q, m))
    return jnp.sum(m * (jnp.log(m) - 0.5 * (jnp.log(p) + jnp.log(q))), axis=-1)


def masked_adversarial(
    teacher_logits: Array,
    student_logits: Array,
    temperature: float = 3.0,
    divergence: Divergence = kl_divergence,
) -> Array:
    """Computes D(f_t, f_s) of Eq. 4 where teacher and student agree on the class, else 0 (as the released code).

    The generator maximises it, so the caller subtracts it, averaged over the whole batch including the zeros.
    Gradients flow through both networks but not through the mask.

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.
        temperature: T > 0.
        divergence: the D of Eq. 4.

    Returns:
        `[B]`.
    """
    agree = jnp.argmax(teacher_logits, axis=-1) == jnp.argmax(student_logits, axis=-1)
    return jnp.where(agree, divergence(teacher_logits, student_logits, temperature), 0)


def confident_class_loss(teacher_logits: Array) -> Array:
    """Computes CE of the teacher's logits to their own arg max: L_oh of Eq. 5 (printed with the student's).

    Args:
        teacher_logits: `[B, C]`.

    Returns:
        `[B]` in [0, ln C]; the arg max carries no gradient.
    """
    return cross_entropy(teacher_logits, jnp.argmax(teacher_logits, axis=-1))


def class_balance_loss(mean_probabilities: Array) -> Array:
    """Computes Σ_c p̄_c·ln(p̄_c + 1e-8), the negative entropy of the mean prediction: minimal for balanced classes.

    Args:
        mean_probabilities: `[C]`, the teacher's probabilities averaged over the whole batch on all devices.

    Returns:
        `[]` in [−ln C, 0], up to the 1e-8 that keeps an absent class out of ln 0.
    """
    p = at_least_float32(mean_probabilities)
    return jnp.sum(p * jnp.log(p + 1e-8))


def bn_alignment(layers: Iterable[BatchStatistics]) -> Array:
    """Computes L_bn of Eq. 5: Σ over layers of ‖μ − μ_bn‖₂ + ‖σ² − σ²_bn‖₂ (Yin et al., 2020, DeepInversion).

    Args:
        layers: statistics at the input of each BatchNorm layer of the teacher.

    Returns:
        `[]`, non-negative; where a norm is 0, its gradient is 0, not NaN.
    """
    norms = (_norm(layer.mean, layer.running_mean) + _norm(layer.var, layer.running_var) for layer in layers)
    return sum(norms, start=jnp.asarray(0.0))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes −ln softmax(logits)[label].

    Args:
        logits: `[B, C]`.
        labels: `[B]` integers in [0, C).

    Returns:
        `[B]`, non-negative.
    """
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels)


def _norm(a: Array, b: Array) -> Array:
    return optax.safe_norm(at_least_float32(a) - at_least_float32(b), min_norm=0.0)


def _log_softmax(logits: Array, temperature: float) -> Array:
    return jax.nn.log_softmax(at_least_float32(logits) / temperature, axis=-1)
