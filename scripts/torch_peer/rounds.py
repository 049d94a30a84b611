"""A plain implementation of CuDFKD's round in PyTorch: eager, float32, channels first.

    generator (Eq. 4, 5)   -a_adv D(f_t(x), f_s(x)) + a_bn L_bn(x) + a_oh L_oh(x) + a_bal L_bal(x),  x = G(z)
    student   (Eq. 6)      1/B sum_i v*(lambda(t), l_i) l_i

Images are [B, C, H, W] in [0, 1]. A round transfers nothing to the host. No parameters are frozen, so the
generator's step also computes unused gradients for both classifiers; `tuned.TunedRound` avoids them.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from torch_peer import losses
from torch_peer.generator import Generator
from torch_peer.losses import BatchNormAlignment, widened


@dataclasses.dataclass(frozen=True)
class Settings:
    """Objectives and optimisers of a round, named as in the package's configuration.

    Attributes:
        adversarial_weight: the constant weight of D; None without this term.
        lambda_max: the age parameter is min(lambda_0 + lambda_slope * step, lambda_max).
        betas: for the generator's Adam.
    """

    batch_size: int
    synthesis_steps: int
    student_steps: int
    latent_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: str
    temperature: float
    adversarial_weight: float | None
    adversarial_temperature: float
    bn_weight: float
    class_weight: float
    balance_weight: float
    lambda_0: float
    lambda_slope: float
    lambda_max: float
    learning_rate: float
    momentum: float
    weight_decay: float
    generator_learning_rate: float
    betas: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The three networks of a round; the classifiers take normalised images."""

    generator: Generator
    teacher: nn.Module
    student: nn.Module


class PlainRound:
    """The generator's steps, followed by the student's, on one device."""

    def __init__(self, networks: Networks, settings: Settings, device: torch.device):
        """Moves the networks to the device; training changes them in place."""
        self.settings, self.device = settings, device
        self.generator = networks.generator.to(device)
        self.teacher, self.student = networks.teacher.to(device).eval(), networks.student.to(device)
        self.alignment = BatchNormAlignment(self.teacher)
        like = next(self.student.parameters())
        self.mean, self.std = (like.new_tensor(x)[:, None, None] for x in (settings.mean, settings.std))
        self.step = 0
        self._make_optimisers()

    @property
    def description(self) -> str:
        """A description of this implementation."""
        tf32 = " (convolutions in TF32, as PyTorch has it by default)" if self.device.type == "cuda" else ""
        return f"eager, float32{tf32}, NCHW"

    def run(self) -> dict[str, list[float]]:
        """Runs a round; returns its seconds and the mean seconds per step of each kind."""
        s = self.settings
        begin = self._time()
        self.synthesise(self._latents(s.synthesis_steps))
        synthesised = self._time()
        self.train(self._latents(s.student_steps))
        end = self._time()
        return {
            "synthesis step": [(synthesised - begin) / s.synthesis_steps],
            "student step": [(end - synthesised) / s.student_steps],
            "round": [end - begin],
        }

    def synthesise(self, latents: Tensor) -> list[Tensor]:
        """Runs a generator step per batch of latents [steps, B, latent_dim]; returns the losses."""
        self.generator.train()
        self.student.eval()
        self.alignment.active = True
        values = []
        for z in latents:
            self.generator_optimiser.zero_grad()
            with self.precision():
                loss = self.synthesis_loss(z)
            loss.backward()
            self.generator_optimiser.step()
            values.append(loss.detach())
        self.alignment.active = False
        return values

    def train(self, latents: Tensor) -> list[Tensor]:
        """Runs a student step per batch of latents [steps, B, latent_dim]; returns the losses."""
        self.generator.eval()
        self.student.train()
        values = []
        for images, teacher_logits in self.batches(latents):
            self.student_optimiser.zero_grad()
            with self.precision():
                loss = self.student_loss(images, teacher_logits, self._lambda())
            loss.backward()
            self.student_optimiser.step()
            self.step += 1
            values.append(loss.detach())
        return values

    def batches(self, latents: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Yields the images and the teacher's logits of each student step."""
        for z in latents:
            with self.precision():
                batch = self.generate(z)
            yield batch

    def precision(self) -> AbstractContextManager[object]:
        """Returns the context of the forward passes."""
        return contextlib.nullcontext()

    def generate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images of the frozen generator and the teacher's logits."""
        with torch.no_grad():
            images = self.generator(z)
            return images, self.logits(self.teacher, images)

    def synthesis_loss(self, z: Tensor) -> Tensor:
        """Computes the generator's objective."""
        s = self.settings
        images = self.generator(z)
        teacher_logits = self.logits(self.teacher, images)
        loss = teacher_logits.new_zeros(())
        if s.adversarial_weight is not None:
            student_logits = self.logits(self.student, images)
            divergence = losses.masked_adversarial(teacher_logits, student_logits, s.adversarial_temperature)
            loss = loss - s.adversarial_weight * divergence
        if s.bn_weight:
            loss = loss + s.bn_weight * self.alignment.total()
        if s.class_weight:
            loss = loss + s.class_weight * losses.confident_class(teacher_logits)
        if s.balance_weight:
            loss = loss + s.balance_weight * losses.class_balance(teacher_logits, s.temperature)
        return loss

    def student_loss(self, images: Tensor, teacher_logits: Tensor, lam: Tensor) -> Tensor:
        """Computes the student's objective."""
        student_logits = self.logits(self.student, images)
        if self.settings.loss == "l1":
            sample_losses = losses.l1_distance(teacher_logits, student_logits)
        else:
            sample_losses = losses.kl_divergence(teacher_logits, student_logits, self.settings.temperature)
        return losses.self_paced(sample_losses, lam)

    def logits(self, net: nn.Module, images: Tensor) -> Tensor:
        """Computes the logits [B, classes], float32 or wider, of images in [0, 1]."""
        return widened(net((images - self.mean) / self.std))

    def _make_optimisers(self, **options: bool) -> None:
        s = self.settings
        self.generator_optimiser = torch.optim.Adam(
            self.generator.parameters(), s.generator_learning_rate, betas=s.betas, **options
        )
        self.student_optimiser = torch.optim.SGD(
            self.student.parameters(),
            s.learning_rate,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            **options,
        )

    def _latents(self, steps: int) -> Tensor:
        s = self.settings
        return torch.randn(steps, s.batch_size, s.latent_dim, dtype=self.mean.dtype, device=self.device)

    def _lambda(self) -> Tensor:
        s = self.settings
        return self.mean.new_full((), min(s.lambda_0 + s.lambda_slope * self.step, s.lambda_max))

    def _time(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
