"""The data-free stage: distils a student, evaluates it on the test images, saves and summarises it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cudfkd_jax.config.jobs import DistillJob
from cudfkd_jax.data import Split
from cudfkd_jax.evaluation import diagnostics, observations, samples, verification
from cudfkd_jax.evaluation.convergence import MajoriseMinimise
from cudfkd_jax.evaluation.evaluator import StudentEvaluator
from cudfkd_jax.evaluation.summary import BEST, SUMMARY, TEST_METRICS, distill_summary
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.capture import has_batch_norm
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.memory import check_fits
from cudfkd_jax.storage import records, weights
from cudfkd_jax.storage.files import write_json
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import NetworkSpec, save_net
from cudfkd_jax.training import distill_steps, trainer
from cudfkd_jax.training.batching import batches_at_once
from cudfkd_jax.training.loops import EpochFunction, distillation_steps, make_epoch_function
from cudfkd_jax.training.state import PREVIEW, RunState, purpose_key
from cudfkd_jax.training.trainer import Callback

STUDENT, STUDENT_BEST, SAMPLES = "student", BEST, "samples"
_PREVIEWED = 64  # images per picture
_HINT_AFTER, _COMPARED = 2, 256  # epochs; images whose statistics are compared


def check_shapes(job: DistillJob) -> None:
    """Traces all steps without compiling or computing anything.

    Raises:
        UserError: the networks do not provide what the method needs, or the state does not fit into memory.
    """
    state = jax.eval_shape(_initial_state(job), job.key, job.pair.teacher_variables)
    check_fits("distill", (state, job.pair.teacher_variables), job.memory_settings)


def _initial_state(job: DistillJob) -> Callable[..., RunState]:
    return functools.partial(
        distill_steps.init_state, problem=job.problem, image_shape=job.pair.student_net.image_shape
    )


def distill(
    job: DistillJob, workdir: Path, test: Split | None, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Distils a student, or resumes its distillation in `workdir`.

    Args:
        job: the run.
        workdir: receives `metrics.jsonl`, `checkpoints/`, `samples/`, `student/` (the last student),
            `student_best/` (chosen on the test images) and, at the end, `summary.json`.
        test: used only for evaluation; None measures agreement with the teacher on held-out synthetic images.
        callbacks: further hooks into the training.

    Returns:
        The summary.
    """
    devices, problem, pair = job.devices, job.problem, job.pair
    net = pair.student_net
    frozen = devices.replicate(pair.teacher_variables)
    measure = StudentEvaluator(
        problem,
        frozen,
        devices,
        batch_size=job.evaluation_batch_size,
        test=test,
        synthetic_images=job.synthetic_images,
    )
    teacher = {"arch": pair.teacher_net.arch, **_parameters(pair.teacher_variables), **measure.teacher_metrics}
    if processes.is_first():
        observations.save_teacher(workdir, teacher)
    convergence = _convergence(job, frozen)

    def evaluate(state: RunState) -> Callable[[], dict[str, float]]:
        metrics = measure(state)
        found = convergence(state) if convergence else {}
        return lambda: metrics() | found

    stage = trainer.Stage(
        name="distill",
        folder=workdir,
        epochs=job.settings.distill.epochs,
        steps_per_epoch=job.epoch.steps,
        steps_per_round=job.epoch.student_steps,
        images_per_step=job.settings.distill.batch_size,
        init=functools.partial(_initial_state(job), job.key, pair.teacher_variables),
        run_epoch=_epoch_function(job),
        frozen=(frozen,),
        evaluate=evaluate,
        devices=devices,
        callbacks=(*_callbacks(job, workdir, measure, has_test=test is not None), *callbacks),
        waits=test is None or convergence is not None,
    )
    state, history = trainer.run(stage, job.options)
    summary = distill_summary(
        run=job.description,
        history=history,
        teacher=teacher,
        student={"arch": net.arch, **_parameters(state.student.variables)},
        devices=devices,
    )
    if processes.is_first():
        save_net(workdir / STUDENT, _with_metrics(net, history[-1]), jax.device_get(state.student.variables))
        write_json(workdir / SUMMARY, summary)
    return summary


def _callbacks(job: DistillJob, workdir: Path, measure: StudentEvaluator, *, has_test: bool) -> list[Callback]:
    callbacks = [_BestStudent(workdir / STUDENT_BEST, job.pair.student_net), _Pictures(job, workdir, measure)]
    if not has_test and has_batch_norm(job.pair.teacher_variables):
        callbacks.append(_Statistics(job, measure))
    return callbacks


def _epoch_function(job: DistillJob) -> EpochFunction:
    batches = job.batches_at_once or batches_at_once(
        job.problem, job.pair.teacher_variables, job.devices, job.epoch
    )
    return make_epoch_function(job.loop, job.epoch, job.devices, distillation_steps(job.problem), batches=batches)


def _convergence(job: DistillJob, teacher_variables: Any) -> MajoriseMinimise | None:
    if not job.majorise_minimise_updates:
        return None
    settings = job.settings
    return MajoriseMinimise(
        job.problem,
        teacher_variables,
        job.devices,
        sample_loss=settings.sample_loss(),
        strategy=settings.curriculum.strategy,
        lambda_t=settings.lambda_t(),
        batch_size=settings.distill.batch_size,
        updates=job.majorise_minimise_updates,
    )


class _BestStudent(Callback):
    """Callback that withholds the best student until a checkpoint holds its epoch.

    Published earlier, it could belong to an epoch that the run repeats after a crash, with other bits on another
    machine. Written later, it would be lost in a crash right after the checkpoint.
    """

    def __init__(self, folder: Path, net: NetworkSpec):
        self._folder, self._net = folder, net
        self._waiting: tuple[NetworkSpec, Any] | None = None

    def on_epoch_end(self, state: RunState, history: list[Record]) -> Sequence[str]:
        """Keeps the student of the newest epoch if it is the best so far."""
        epoch = len(history)
        best = records.best(history, "acc1")
        if best and best.epoch == epoch:
            chosen = _with_metrics(self._net, history[-1], epoch=epoch, chosen_on="test images")
            self._waiting = chosen, jax.device_get(state.student.variables)
        return ()

    def before_checkpoint(self) -> None:
        """Writes a pending student without publishing it."""
        if self._waiting:
            weights.stage_net(self._folder, *self._waiting)
            self._waiting = None

    def after_checkpoint(self) -> None:
        """Publishes the written student."""
        weights.commit_net(self._folder)

    def after_restore(self, epochs: int) -> None:
        """Completes a publication interrupted by a crash, and drops students of epochs after `epochs`."""
        self._waiting = None
        if processes.is_first():
            weights.settle_net(self._folder, lambda metrics: metrics.get("epoch") in range(1, epochs + 1))


class _Pictures(Callback):
    """Callback that regularly saves and observes synthetic images and warns of problems."""

    def __init__(self, job: DistillJob, workdir: Path, measure: StudentEvaluator):
        self._job, self._workdir, self._measure = job, workdir, measure
        self._preview = jax.jit(job.problem.method.preview, static_argnums=2)

    def inspects(self, epoch: int) -> bool:
        every = self._job.samples_every_epochs
        return bool(every) and (epoch % every == 0 or epoch == self._job.settings.distill.epochs)

    def on_epoch_end(self, state: RunState, history: list[Record]) -> Sequence[str]:
        epoch = len(history)
        if not self.inspects(epoch):
            return ()
        pictures = self.pictures(epoch)
        if processes.is_first():
            images = self._preview(state.aux, purpose_key(state.key, PREVIEW), _PREVIEWED)
            samples.save_grid(pictures["samples/epoch"], np.asarray(images))
        synthetic = self._measure.observe(
            state,
            epoch,
            sample_loss=self._job.settings.sample_loss(),
            loss=self._job.settings.distill.loss,
            workdir=self._workdir,
            picture=pictures["samples/classes"],
        )
        if synthetic is None:  # another process writes and warns
            return ()
        warnings = (
            *diagnostics.of_images(synthetic),
            *diagnostics.of_student(history, self._job.settings.data.num_classes),
        )
        return [f"warning: {warning}" for warning in warnings]

    def pictures(self, epoch: int) -> dict[str, Path]:
        """Returns the epoch's pictures, in no order and by class."""
        if not self.inspects(epoch):
            return {}
        folder = self._workdir / SAMPLES
        return {f"{SAMPLES}/{kind}": folder / f"{kind}_{epoch:04d}.png" for kind in ("epoch", "classes")}


class _Statistics(Callback):
    """Callback of a run without test images that reports once how far its images are from the teacher's."""

    def __init__(self, job: DistillJob, measure: StudentEvaluator):
        self._job, self._measure = job, measure
        self._epoch = min(_HINT_AFTER, job.settings.distill.epochs)

    def inspects(self, epoch: int) -> bool:
        return epoch == self._epoch

    def on_epoch_end(self, state: RunState, history: list[Record]) -> Sequence[str]:
        if not self.inspects(len(history)) or not processes.is_first():
            return ()
        images = self._measure.held_out(state)[:_COMPARED]
        pair = self._job.pair
        deviation, layer = verification.largest_deviation(pair.teacher, pair.teacher_variables, images)
        return [
            f"hint: the teacher's BatchNorm statistics and those of {len(images)} synthetic images deviate by "
            f"{deviation:.3f} at most, at {layer}; near 1 and above, data.mean, data.std or the network may not "
            "be those of its training"
        ]


def _parameters(variables: Any) -> dict[str, int]:
    return {"parameters": count_parameters(variables["params"])}


def _with_metrics(net: NetworkSpec, record: Record, **more: Any) -> NetworkSpec:
    metrics = {name: record[name] for name in TEST_METRICS if name in record}
    return dataclasses.replace(net, metrics=metrics | more)
