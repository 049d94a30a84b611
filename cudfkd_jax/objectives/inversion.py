"""The inversion loss of ADI and CMI: BatchNorm statistics, target classes and student disagreement."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cudfkd_jax.models.capture import BN, Outputs
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.terms import Metrics, SampleLoss
from cudfkd_jax.runtime.devices import Axis


@dataclasses.dataclass(frozen=True)
class InversionLoss:
    """The loss that inverts the teacher, without terms of weight 0.

    α_bn·L_bn(x) + α_c·1/B Σ_i CE(f_t(x_i), y_i) − α_adv·1/B Σ_i D(f_t(x_i), f_s(x_i)).

    Attributes:
        bn_weight: α_bn, the weight of `losses.bn_alignment`.
        class_weight: α_c.
        adversarial_weight: α_adv.
        divergence: D, one value per image.
    """

    bn_weight: float
    class_weight: float
    adversarial_weight: float
    divergence: SampleLoss

    def __call__(
        self,
        images: jax.Array,
        targets: jax.Array,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        axis: Axis,
        *,
        capture: Sequence[str] = (),
    ) -> tuple[jax.Array, Metrics, Outputs]:
        """Computes the loss of a batch.

        Args:
            images: this device's part `[B / axis.size, H, W, C]`.
            targets: their target classes, int `[B / axis.size]`.
            teacher, student: networks in evaluation mode; gradients flow through both.
            axis: the devices that share the batch.
            capture: further outputs of the teacher to capture; see `capture.apply`.

        Returns:
            The weighted sum over the whole batch, its unweighted terms, and the teacher's outputs.
        """
        seen = teacher(images, capture=(*((BN,) if self.bn_weight else ()), *capture))
        terms: dict[str, tuple[float, jax.Array]] = {}
        if self.bn_weight:
            terms["bn_loss"] = self.bn_weight, losses.bn_alignment(seen.bn)
        if self.class_weight:
            loss = axis.mean(jnp.mean(losses.cross_entropy(seen.value, targets)))
            terms["class_loss"] = self.class_weight, loss
        if self.adversarial_weight:
            loss = -axis.mean(jnp.mean(self.divergence(seen.value, student(images).value)))
            terms["adversarial_loss"] = self.adversarial_weight, loss
        total = sum((weight * value for weight, value in terms.values()), start=jnp.asarray(0.0))
        return total, {name: value for name, (_, value) in terms.items()}, seen
