"""The terms of CuDFKD's objectives (Li et al., 2022, Eq. 4-6) in PyTorch.

Logits are [B, C], float32 or wider. Sample losses are [B], all others scalars.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

ADVERSARIAL_TEMPERATURE = 3.0


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Computes T^2 KL(softmax(z_t / T) || softmax(z_s / T)), [B]."""
    log_t = functional.log_softmax(teacher_logits / temperature, dim=1)
    log_s = functional.log_softmax(student_logits / temperature, dim=1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1)


def l1_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Computes the mean over the classes of |z_t - z_s|, [B]."""
    return (teacher_logits - student_logits).abs().mean(1)


def masked_adversarial(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Computes the batch mean of Eq. 4's divergence, masked to 0 where the networks predict different classes."""
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return (kl_divergence(teacher_logits, student_logits, temperature) * agree).mean()


def confident_class(teacher_logits: Tensor) -> Tensor:
    """Computes the cross entropy of the teacher's logits to their arg max, L_oh of Eq. 5."""
    return functional.cross_entropy(teacher_logits, teacher_logits.argmax(1))


def class_balance(teacher_logits: Tensor, temperature: float) -> Tensor:
    """Computes the negative entropy of the mean prediction."""
    mean = functional.softmax(teacher_logits / temperature, dim=1).mean(0)
    return (mean * (mean + 1e-8).log()).sum()


def self_paced(sample_losses: Tensor, lam: Tensor) -> Tensor:
    """Computes Eq. 6: the mean of v* l, with v* = (1 + e^-lam) / (1 + e^(l - lam)) constant for the gradient."""
    with torch.no_grad():
        v = torch.sigmoid(lam - sample_losses.clamp_min(0)) / torch.sigmoid(lam)
    return (v * sample_losses).mean()


class BatchNormAlignment:
    """L_bn of Eq. 5: distances of a batch's means and variances from the BatchNorm layers' running statistics."""

    def __init__(self, net: nn.Module):
        """Registers a hook before each BatchNorm layer of a network; it records only while `active`."""
        self.active = False
        self._distances: list[Tensor] = []
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(self._see)

    def total(self) -> Tensor:
        """Returns the sum over the layers called since the last `total`."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).sum()

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.active:
            assert isinstance(layer, nn.BatchNorm2d)
            assert layer.running_mean is not None and layer.running_var is not None
            var, mean = torch.var_mean(widened(inputs[0]), dim=(0, 2, 3), correction=0)
            self._distances.append(
                torch.linalg.vector_norm(mean - layer.running_mean)
                + torch.linalg.vector_norm(var - layer.running_var)
            )


def widened(x: Tensor) -> Tensor:
    """Converts bfloat16 to float32; float32 and float64 are unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x
