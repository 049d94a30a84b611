"""What to expect of a teacher's distillation: a few lines before anything is trained."""

from typing import NamedTuple

from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.jobs import DistillJob
from cudfkd_jax.evaluation.headline import size
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.capture import batch_norm_layers
from cudfkd_jax.training.progress import duration

PAGE = "docs/will_it_work.md"
_LARGEST = 64  # pixels a side of the paper's images


class Measured(NamedTuple):
    """A recorded run: its images, the points of accuracy that its student lost, and its folder in `results/`."""

    images: str
    lost: float
    folder: str


RUNS = (
    Measured("digits", 0.6, "digits"),
    Measured("CIFAR-10, 10,000 steps at batch 64", 10.6, "cifar10_long"),
)


def outlook(job: DistillJob, pace: Pace) -> list[str]:
    """Returns lines on images, BatchNorm, student, accuracy, time and privacy.

    Args:
        job: the distillation that the configuration describes.
        pace: seconds of its start and of one of its epochs on this machine.
    """
    pair, settings = job.pair, job.settings
    height, width, channels = pair.student_net.image_shape
    layers = len(batch_norm_layers(pair.teacher_variables))
    teacher = count_parameters(pair.teacher_variables["params"])
    student = count_parameters(pair.student_net.abstract_variables()["params"])
    epochs = settings.distill.epochs
    steps = epochs * settings.distill.steps_per_epoch
    lost = "; ".join(f"{run.lost} on {run.images}" for run in RUNS)
    return [
        f"what to expect of {job.description.method} ({PAGE}):",
        f"  images     {height}×{width}×{channels}{_tried(max(height, width))}",
        f"  BatchNorm  {_batch_norm(layers)}",
        f"  student    {pair.student_net.arch}, {student:,} of {teacher:,} parameters, {size(teacher, student)}",
        f"  accuracy   points lost in runs so far: {lost}",
        f"  time       {pace.epoch_s:.3g} s per epoch here: {duration(pace.start_s + epochs * pace.epoch_s)} for "
        f"{steps:,} student steps",
        "  privacy    synthetic images and student may reveal what the teacher remembers",
    ]


def _tried(pixels: int) -> str:
    return "" if pixels <= _LARGEST else f", larger than any of the paper's ({_LARGEST}×{_LARGEST})"


def _batch_norm(layers: int) -> str:
    if layers:
        return f"{layers} layers, whose statistics guide the images"
    return "none: the images are guided by the logits alone, adi and dfq are refused"
