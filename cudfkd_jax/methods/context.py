"""What a method is built from: typed settings and the networks."""

import dataclasses
from typing import Any

import optax
from jax.typing import DTypeLike

from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.objectives import curriculum, student
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import SampleLoss


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The section `data`.

    Attributes:
        image_shape: `(H, W, C)`.
        num_classes: number of logits.
        mean, std: per channel, of images in [0, 1].
        padding: zero pixels around an image before a random crop to its size; 0: no crop.
        flip: whether images may be mirrored.
        has_images: whether there are images to test on.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    has_images: bool


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """The section `generator`; `defaults.py` describes each setting."""

    latent_dim: int
    width: int
    stages: int
    size: str
    initialisation: str
    ema_decay: float
    learning_rate: float
    schedule: str
    beta1: float
    beta2: float


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """The schedule and the student's loss in the section `distill`; `defaults.py` describes each setting."""

    epochs: int
    warmup_rounds: int
    rounds_per_epoch: int
    synthesis_steps: int
    student_steps: int
    batch_size: int
    loss: str
    temperature: float

    @property
    def steps_per_epoch(self) -> int:
        """Student steps per epoch."""
        return self.rounds_per_epoch * self.student_steps


@dataclasses.dataclass(frozen=True)
class CurriculumSettings:
    """The section `curriculum`; `defaults.py` describes each setting."""

    strategy: str
    granularity: str
    lambda_0: float
    lambda_slope: float
    lambda_max: float
    ramp: str
    alpha: float
    adv: float
    k_begin: float
    k_end: float
    none_keeps_ramp: bool


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """The section `synthesis`; `batch_size` is that of synthesis steps even where the setting is 0."""

    batch_size: int
    adversarial_loss: str
    adversarial_mask: str
    adversarial_temperature: float
    adversarial_weight: float
    bn_weight: float
    class_weight: float
    balance_weight: float
    activation_weight: float


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """The section `memory`; `defaults.py` describes each setting."""

    capacity: int
    every_epochs: int


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """All settings that a method may depend on.

    Attributes:
        data, generator, distill, curriculum, synthesis, memory: sections of the configuration.
        own: the method's own section, an instance of the class of `MethodSpec.settings`; None if it has none.
        released_js: whether "js" is the released code's clamped divergence.
        dtype: dtype of convolutions and matrix products; None keeps that of parameters and inputs.
    """

    data: ImageSettings
    generator: GeneratorSettings
    distill: DistillSettings
    curriculum: CurriculumSettings
    synthesis: SynthesisSettings
    memory: MemorySettings
    own: Any
    released_js: bool
    dtype: DTypeLike | None

    def alpha_adv(self) -> optax.Schedule | None:
        """Returns α_adv(t) as a schedule of the student step; None if it is always 0."""
        c = self.curriculum
        flat = c.strategy == "none" and not c.none_keeps_ramp
        kind = "constant" if flat or c.alpha == 0 else c.ramp
        if kind == "constant" and c.adv == 0:
            return None
        return curriculum.adversarial_schedule(
            kind,
            initial=c.adv,
            slope=c.alpha,
            k_begin=c.k_begin,
            k_end=c.k_end,
            epochs=self.distill.epochs,
            steps_per_epoch=self.distill.steps_per_epoch,
        )

    def lambda_t(self) -> optax.Schedule:
        """Returns λ(t) as a schedule of the student step."""
        c = self.curriculum
        return curriculum.lambda_schedule(c.lambda_0, c.lambda_slope, c.lambda_max or None)

    def sample_loss(self) -> SampleLoss:
        """Returns D of Eq. 6, the student's loss per image."""
        d = self.distill
        return student.student_divergence(d.loss, d.temperature, released_js=self.released_js)

    def student_loss(self) -> StudentLoss:
        """Returns the mean of D over the batch, the student's loss of most methods."""
        return student.plain_student_loss(self.sample_loss())


@dataclasses.dataclass(frozen=True)
class MethodContext(MethodSettings):
    """A method's settings together with the networks.

    Attributes:
        teacher, student: the networks, without their variables.
        has_batch_norm: whether the teacher has BatchNorm statistics.
    """

    teacher: Classifier
    student: Classifier
    has_batch_norm: bool

    @property
    def bn_weight(self) -> float:
        """α_bn of Eq. 5; 0 for a teacher without BatchNorm."""
        return self.synthesis.bn_weight if self.has_batch_norm else 0.0
