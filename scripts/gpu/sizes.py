"""The networks and settings of the steps, in full size and small for smoke tests."""

from typing import NamedTuple


class Pair(NamedTuple):
    """A teacher, a student and their settings.

    Attributes:
        config: the value of `--config`.
        changes: `--config.…` arguments.
        teacher: `--config.…` arguments of the teacher's training.
        teacher_s: expected seconds of the teacher's training; the limit is twice that.
    """

    config: str
    changes: tuple[str, ...]
    teacher: tuple[str, ...]
    teacher_s: float

    def of_method(self, method: str) -> "Pair":
        """Returns the same networks with another method."""
        return self._replace(config=f"{self.config},method={method}")


_BFLOAT16 = "--config.compute_dtype=bfloat16"
_TEACHER = tuple(
    f"--config.teacher.{setting}"
    for setting in ("epochs=60", "batch_size=512", "learning_rate=0.4", "warmup_epochs=5.0")
)

FLAGSHIP = Pair("configs/cifar10.py:teacher=wrn40_2,student=wrn16_1", (_BFLOAT16,), _TEACHER, 90.0)
TABLE_V = Pair(
    "configs/cifar10.py:teacher=resnet34,student=resnet18",
    (_BFLOAT16, "--config.distill.batch_size=256"),
    _TEACHER,
    300.0,
)

_SMALL = Pair(
    "configs/cifar10.py:teacher=wrn10_1,student=wrn10_1",
    (
        *("--config.distill.batch_size=16", "--config.distill.epochs=2", "--config.generator.width=8"),
        *("--config.distill.rounds_per_epoch=2", "--config.distill.synthesis_steps=2"),
        *("--config.distill.student_steps=4", "--config.generator.latent_dim=16"),
        *(
            "--config.evaluation.batch_size=64",
            "--config.synthesis.batch_size=16",
            "--config.cmi.bank_rows=64",
            "--config.cmi.bank_draws=32",
        ),
    ),
    ("--config.teacher.epochs=1", "--config.teacher.batch_size=32"),
    120.0,
)


def pair(full: Pair, *, smoke: bool) -> Pair:
    """Returns the pair, or the small one for a smoke test."""
    return _SMALL if smoke else full
