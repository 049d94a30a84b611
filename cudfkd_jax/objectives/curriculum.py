"""The curriculum of CuDFKD: self-paced sample weights, and schedules of increasing difficulty.

Equations and sections are those of Li et al., "How to Teach: Learning Data-Free Knowledge Distillation From
Curriculum" (CuDFKD). The self-paced functions act elementwise on losses of any shape: `[B]` for one weight per
sample, `[]` for one weight per batch. They return the dtype of the losses and apply no stop-gradient; the
student's objective (Eq. 6) treats v* as a constant, which the caller ensures.

The schedules are optax schedules, pure functions of the student step, counted from 0; the epoch is
`step // steps_per_epoch`, counted from 0.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import xlogy
from jax.typing import ArrayLike

from cudfkd_jax.runtime.errors import unknown

STRATEGIES = ("none", "hard", "soft", "log")
ALPHA_SCHEDULES = ("linear", "released", "eq17", "constant")


def spl_weights(strategy: str, losses: Array, lam: ArrayLike) -> Array:
    """Computes v*(λ, L), the minimiser over v in [0, 1] of v·L + g(λ, v) (Eq. 1; the forms of §V-E).

    hard: 1(L < λ); soft: 1(L < λ)·(1 − L/λ); log: (1 + e^−λ) / (1 + e^(L−λ)); none: 1, by definition.

    Args:
        strategy: one of `STRATEGIES`.
        losses: non-negative losses, any shape; values below 0 (rounding of a divergence) count as 0.
        lam: λ > 0, the age parameter, a scalar.

    Returns:
        Weights in [0, 1], non-increasing in the loss, with the shape and dtype of `losses`.

    Raises:
        UserError: the strategy is unknown.
    """
    lam = jnp.asarray(lam, losses.dtype)
    losses = jnp.maximum(losses, 0)
    match strategy:
        case "none":
            return jnp.ones_like(losses)
        case "hard":
            return (losses < lam).astype(losses.dtype)
        case "soft":
            return jnp.maximum(lam - losses, 0) / lam
        case "log":
            # 1 + e^−λ is 1/σ(λ): as a ratio of sigmoids nothing overflows, and v*(λ, 0) is exactly 1.
            return jax.nn.sigmoid(lam - losses) / jax.nn.sigmoid(lam)
    raise unknown("strategy", strategy, STRATEGIES)


def spl_regulariser(strategy: str, v: Array, lam: ArrayLike) -> Array:
    """Computes each sample's share of the regulariser g(λ, v) of Eq. 1 and 6; g is the sum over samples.

    hard: −λv; soft: ½λ(v² − 2v); log: μ ln μ + v ln v − λv with μ = 1 + e^−λ − v; none: 0.

    Args:
        strategy: one of `STRATEGIES`.
        v: weights in [0, 1], any shape.
        lam: λ > 0, a scalar.

    Returns:
        g of each weight (up to an additive constant in λ), with the shape and dtype of `v`.

    Raises:
        UserError: the strategy is unknown.
    """
    lam = jnp.asarray(lam, v.dtype)
    match strategy:
        case "none":
            return jnp.zeros_like(v)
        case "hard":
            return -lam * v
        case "soft":
            return 0.5 * lam * (v * v - 2 * v)
        case "log":
            # 1 − v first: in this order μ cannot round below 0; xlogy takes 0 ln 0 as 0.
            mu = (1 - v) + jnp.exp(-lam)
            return xlogy(mu, mu) + xlogy(v, v) - lam * v
    raise unknown("strategy", strategy, STRATEGIES)


def latent_objective(strategy: str, losses: Array, lam: ArrayLike) -> Array:
    """Computes F_λ(L) = ∫₀ᴸ v*(λ, l) dl, which alternating minimisation over v and w descends (Eq. 2 and 7).

    hard: min(L, λ); soft: L − L²/2λ up to L = λ, then λ/2;
    log: (1 + e^−λ)·(L − ln(1 + e^(L−λ)) + ln(1 + e^−λ)); none: L.

    Args:
        strategy: one of `STRATEGIES`.
        losses: non-negative losses, any shape.
        lam: λ > 0, a scalar.

    Returns:
        F_λ of each loss, concave and non-decreasing in the loss, with the shape and dtype of `losses`.

    Raises:
        UserError: the strategy is unknown.
    """
    lam = jnp.asarray(lam, losses.dtype)
    capped = jnp.minimum(losses, lam)
    match strategy:
        case "none":
            return losses
        case "hard":
            return capped
        case "soft":
            return capped * (1 - 0.5 * (capped / lam))
        case "log":
            # ln(1 + e^x) = max(x, 0) + ln(1 + e^−|x|) in both terms, so that large L and λ cancel exactly.
            e_lam = jnp.exp(-lam)
            return (1 + e_lam) * (capped + jnp.log1p(e_lam) - jnp.log1p(jnp.exp(-jnp.abs(losses - lam))))
    raise unknown("strategy", strategy, STRATEGIES)


def majoriser(strategy: str, losses: Array, losses_ref: Array, lam: ArrayLike) -> Array:
    """Computes Q of Eq. 8, the tangent of F_λ at a reference: F_λ(L_ref) + v*(λ, L_ref)·(L − L_ref).

    F_λ is concave, so Q bounds it from above and touches it at L_ref. With L_ref from the current weights,
    minimising Q in L means minimising v*·L, the student's step (Eq. 9). (Eq. 8 as printed takes v* at the free
    point w; the tangent, and the proof, need it at the reference w*.)

    Args:
        strategy: one of `STRATEGIES`.
        losses: non-negative losses, any shape.
        losses_ref: the losses at the reference point, same shape.
        lam: λ > 0, a scalar.

    Returns:
        Q for each loss, with the shape and dtype of `losses`.

    Raises:
        UserError: the strategy is unknown.
    """
    slope = spl_weights(strategy, losses_ref, lam)
    return latent_objective(strategy, losses_ref, lam) + slope * (losses - losses_ref)


def lambda_schedule(lambda_0: float, slope: float, maximum: float | None) -> optax.Schedule:
    """Returns the schedule λ(step) = min(λ₀ + slope·step, maximum) (§IV-B: "linearly increase").

    Args:
        lambda_0: λ at step 0, > 0.
        slope: increase per student step, >= 0.
        maximum: the upper limit; None for no limit, as in the released code.

    Returns:
        A schedule of the student step.
    """

    def schedule(step: ArrayLike) -> Array:
        lam = lambda_0 + slope * jnp.asarray(step)
        return lam if maximum is None else jnp.minimum(lam, maximum)

    return schedule


def adversarial_schedule(
    kind: str,
    *,
    initial: float,
    slope: float,
    k_begin: float,
    k_end: float,
    epochs: int,
    steps_per_epoch: int,
) -> optax.Schedule:
    """Returns the schedule of α_adv (Eq. 4), non-decreasing and constant within an epoch.

    With e the epoch and N = `epochs`:

    * linear: initial + slope·(whole epochs past k_begin·N), constant after k_end·N.
    * released: initial + slope·#{j < e : ⌊k_begin·N⌋ < j < ⌊k_end·N⌋}, because the released code adds the slope
      at the end of each such epoch.
    * eq17: Eq. 17 as printed: initial up to k_begin·N, then slope·e (which jumps there), then constant
      after k_end·N; never below initial.
    * constant: initial.

    Args:
        kind: one of `ALPHA_SCHEDULES`.
        initial: the value before the ramp.
        slope: increase per epoch (α in Eq. 17), >= 0.
        k_begin: start of the ramp, a fraction of the epochs in [0, 1].
        k_end: end of the ramp, a fraction above `k_begin`.
        epochs: N, the epochs of the whole run.
        steps_per_epoch: student steps per epoch.

    Returns:
        A schedule of the student step.

    Raises:
        UserError: the kind is unknown.
    """
    begin, end = _whole(k_begin * epochs), _whole(k_end * epochs)
    match kind:
        case "linear":
            first, last = math.ceil(begin), math.floor(end)
        case "released":
            first, last = int(k_begin * epochs) + 1, int(k_end * epochs)
        case "constant":
            first, last = 0, 0
        case "eq17":
            return _eq17(initial, slope, math.floor(begin), math.floor(end), steps_per_epoch)
        case _:
            raise unknown("schedule of α_adv", kind, ALPHA_SCHEDULES)

    def schedule(step: ArrayLike) -> Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        return initial + slope * jnp.maximum(jnp.minimum(epoch, last) - first, 0)

    return schedule


def _whole(product: float) -> float:
    """Returns a product that is a whole number up to rounding as that: 0.29 · 100 = 28.999999999999996 as 29."""
    return round(product, 9)


def _eq17(initial: float, slope: float, begin: int, end: int, steps_per_epoch: int) -> optax.Schedule:
    def schedule(step: ArrayLike) -> Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        ramp = jnp.maximum(slope * jnp.minimum(epoch, end), initial)
        return jnp.where(epoch <= begin, initial, ramp)

    return schedule


def negatives_schedule(
    share: float, queue: int, *, k_begin: float, k_end: float, epochs: int, steps_per_epoch: int
) -> Callable[[ArrayLike], tuple[Array, Array]]:
    """Returns the schedule of the negatives of AdaDFKD (Li et al., 2023), from the easiest to the hardest.

    Of K negatives in order of similarity, those of rank ⌊h·K⌋ to ⌊(h + k)·K⌋ − 1 count in epoch e of N, with

        h = clip((1 − k)·(e − ⌊k_begin·N⌋) / ⌊N·(k_end − k_begin)⌋, 0, 1 − k).

    Products that are whole numbers stay whole; in the released code some are rounded below, so that a window may
    begin or end one rank earlier.

    Args:
        share: k in (0, 1].
        queue: K.
        k_begin, k_end: shares of the epochs between which h rises.
        epochs: N.
        steps_per_epoch: student steps per epoch.

    Returns:
        A schedule of the student step: `(first, end)`, int32 scalars with 0 <= first < end <= K.
    """
    since = np.arange(epochs) - math.floor(_whole(k_begin * epochs))
    rise = max(math.floor(_whole(epochs * (k_end - k_begin))), 1)
    h = np.clip((1 - share) * since / rise, 0, 1 - share)
    # Added because whole products may be rounded below.
    first, end = (jnp.asarray(np.floor(edge * queue + 1e-9), jnp.int32) for edge in (h, h + share))

    def schedule(step: ArrayLike) -> tuple[Array, Array]:
        epoch = jnp.minimum(jnp.asarray(step) // steps_per_epoch, epochs - 1)
        return first[epoch], end[epoch]

    return schedule
