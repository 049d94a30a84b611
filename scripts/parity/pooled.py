"""The common part of ADI, CMI and FastDFKD: a pool, and a student trained on given images of it."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import STUDENT, RunState, purpose_key
from parity import generative, ours, released
from parity.released import DataFree
from parity.replay import biased_running_variance, patched, traced
from parity.rows import Case


@contextlib.contextmanager
def without_loaders(module: Any) -> Iterator[None]:
    """Prevents a synthesiser of the release from starting data loaders, whose images are not used here."""
    with (
        patched(module, DataIter=lambda loader: None),
        patched(torch.utils.data, DataLoader=lambda *arguments, **options: None),
    ):
        yield


class StudentTraining:
    """Trains both students on the same images of our pool, with KL at the configuration's temperature."""

    def __init__(
        self,
        release: DataFree,
        config: Any,
        method: str,
        mine: ours.Ours,
        teacher: Any,
        student: Any,
        normalise: Any,
    ) -> None:
        d = config.distill
        self.release, self.mine, self.networks, self.normalise = release, mine, [student, teacher], normalise
        self.count = d.student_steps
        self.given = released.arguments(method=method, kd_steps=self.count)
        self.criterion = release.criterions.KLDiv(T=d.temperature)
        self.optimiser = torch.optim.SGD(
            student.parameters(), d.learning_rate, momentum=d.momentum, weight_decay=d.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, T_max=d.epochs, eta_min=d.learning_rate_end
        )
        self.step = ours.step(distill_steps.student_step, mine)

    def epoch(self, case: Case, state: RunState, *, named: str = "") -> RunState:
        """Compares the student steps of one epoch; returns our state after them."""
        images = [self._images(state, ahead) for ahead in range(self.count)]
        waiting = [self.normalise(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())) for x in images]
        pool = _Pool(lambda: waiting.pop(0))
        train = self.release.kd.train
        # FastDFKD's release reads the number of steps from the arguments.
        count = (self.count,) if "kd_step" in inspect.signature(train).parameters else ()
        with biased_running_variance(), traced(train, "optimizer.zero_grad()") as seen:
            train(pool, self.networks, self.criterion, self.optimiser, self.given, *count)
        for theirs in seen.steps:
            state = self.step(state, self.mine.teacher)
            generative.compare_plain_student(case, state, theirs, self.optimiser)
        generative.compare_student_weights(case, state, self.networks[0], named=named)
        self.schedule.step()
        return state

    def _images(self, state: RunState, ahead: int) -> np.ndarray:
        teacher = functools.partial(self.mine.problem.teacher, self.mine.teacher)
        key = purpose_key(state.key, STUDENT, state.step + ahead)
        return np.asarray(self.mine.problem.method.sample(state.aux, teacher, key, SINGLE))


class _Pool:
    def __init__(self, sample: Callable[[], torch.Tensor]) -> None:
        self.sample = sample
