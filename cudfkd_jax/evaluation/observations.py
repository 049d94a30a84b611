"""Per-image observations for the report, too large for the records of `metrics.jsonl`.

They are made whenever pictures of synthetic images are saved. They are cheap and affect neither training nor its
random draws.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cudfkd_jax.evaluation import metrics, samples
from cudfkd_jax.storage.files import write_json

FOLDER = Path("report", "data")  # in a workdir; one file per epoch
TEACHER = "teacher.json"
LOYALTY_BINS = 50  # over [0, 1]
_ROWS, _COLUMNS = 20, 8  # of the picture by class


def path_of(workdir: Path, epoch: int) -> Path:
    """Returns the path of an epoch's observation."""
    return workdir / FOLDER / f"epoch_{epoch:04d}.json"


def save_teacher(workdir: Path, teacher: dict[str, Any]) -> None:
    """Writes the teacher's architecture, size and metrics, for reports before the first epoch ends."""
    write_json(workdir / FOLDER / TEACHER, teacher)


def save(path: Path, epoch: int, synthetic: dict[str, Any], test: dict[str, Any] | None) -> None:
    """Writes the observation of an epoch; `test` is None without test images."""
    write_json(path, {"epoch": epoch, "synthetic": synthetic, "test": test})


def of_synthetic_images(
    images: np.ndarray,
    teacher_logits: np.ndarray,
    student_logits: np.ndarray,
    sample_loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    loss: str,
) -> dict[str, Any]:
    """Measures the difficulty of synthetic images (Fig. 5a), with both networks in evaluation mode.

    Args:
        images: `[N, H, W, C]` in [0, 1].
        teacher_logits, student_logits: `[N, classes]`.
        sample_loss: D of Eq. 6, from two arrays `[N, classes]` to `[N]`.
        loss: its name, shown to the user.

    Returns:
        JSON-ready: `loss`; `difficulty` (one number per image, six digits); `classes`, the number of images that
        the teacher assigns to each class; and `spread`, the standard deviation over images, mean over pixels.
    """
    difficulty = np.asarray(
        jax.device_get(sample_loss(jnp.asarray(teacher_logits), jnp.asarray(student_logits))), np.float64
    )
    classes = np.bincount(teacher_logits.argmax(-1), minlength=teacher_logits.shape[1])
    return {
        "loss": loss,
        "difficulty": [float(f"{d:.6g}") for d in difficulty],
        "classes": classes.tolist(),
        "spread": float(images.std(0).mean()),
    }


def of_test_images(teacher_logits: np.ndarray, student_logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Measures loyalty (Fig. 2) over the test images, and accuracy by class.

    Args:
        teacher_logits, student_logits: `[N, classes]`.
        labels: `[N]`.

    Returns:
        JSON-ready: `loyalty` and `loyalty_released`, counts in `LOYALTY_BINS` equal bins of [0, 1]; and per class
        the number of `images`, and of correct predictions by `student` and `teacher`.
    """
    loyalty, released = _loyalties(student_logits, teacher_logits)
    count = labels.astype(np.int64)

    def by_class(chosen: np.ndarray) -> list[int]:
        return np.bincount(count[chosen], minlength=teacher_logits.shape[1]).tolist()

    return {
        "loyalty": _histogram(loyalty),
        "loyalty_released": _histogram(released),
        "images": by_class(np.ones(len(labels), bool)),
        "student": by_class(student_logits.argmax(-1) == labels),
        "teacher": by_class(teacher_logits.argmax(-1) == labels),
    }


def save_classes(path: Path, images: np.ndarray, teacher_logits: np.ndarray) -> None:
    """Writes a picture with one row per class: the images `[N, H, W, C]` in [0, 1] that the teacher assigns to it.

    It shows the first `_COLUMNS` images of the first `_ROWS` classes; missing images stay grey.
    """
    classes = teacher_logits.argmax(-1)
    rows = min(teacher_logits.shape[1], _ROWS)
    shown = np.full((rows, _COLUMNS, *images.shape[1:]), samples.GREY / 255, images.dtype)
    for row in range(rows):
        of_class = images[classes == row][:_COLUMNS]
        shown[row, : len(of_class)] = of_class
    samples.save_grid(path, shown.reshape(-1, *images.shape[1:]), columns=_COLUMNS)


@jax.jit  # operation by operation, it would be thirty programs
def _loyalties(student_logits: jax.Array, teacher_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    pair = student_logits, teacher_logits
    return metrics.probability_loyalty(*pair), metrics.probability_loyalty_released(*pair)


def _histogram(values: jax.Array) -> list[int]:
    return np.histogram(np.clip(np.asarray(values), 0, 1), LOYALTY_BINS, (0, 1))[0].tolist()
