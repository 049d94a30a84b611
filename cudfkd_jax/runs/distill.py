"""The data-free stage: distils a student, evaluates it on the test images, saves and summarises it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cudfkd_jax.config import access, build, identity
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.data import Split
from cudfkd_jax.evaluation import diagnostics, observations, samples
from cudfkd_jax.evaluation.convergence import MajoriseMinimise
from cudfkd_jax.evaluation.evaluator import StudentEvaluator
from cudfkd_jax.evaluation.summary import SUMMARY, TEST_METRICS, distill_summary
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.memory import check_fits
from cudfkd_jax.storage import records, weights
from cudfkd_jax.storage.files import write_json
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import NetworkSpec, save_net
from cudfkd_jax.training import distill_steps, trainer
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.state import PREVIEW, RunState, purpose_key
from cudfkd_jax.training.trainer import Callback

STUDENT, STUDENT_BEST, SAMPLES = "student", "student_best", "samples"
_PREVIEWED = 64  # images per picture


def check_shapes(config: ConfigDict, pair: Pair) -> None:
    """Traces all steps without compiling or computing anything.

    Raises:
        UserError: the networks do not provide what the method needs, or the state does not fit into memory.
    """
    student, shape = pair.student, pair.student_net.image_shape
    _check_logits("teacher", pair.teacher, lambda: pair.teacher_variables, config)
    _check_logits("student", student, lambda: student.init(jax.random.key(0), shape), config)
    problem = build.problem(config, pair)
    init = functools.partial(distill_steps.init_state, problem=problem, image_shape=tuple(config.data.image_shape))
    state = jax.eval_shape(init, identity.root_key(config, "distill"), pair.teacher_variables)
    check_fits("distill", (state, pair.teacher_variables), build.memory_settings(config, "distill"))


def _check_logits(role: str, network: Classifier, variables: Callable[[], Any], config: ConfigDict) -> None:
    images = jax.ShapeDtypeStruct((2, *config.data.image_shape), jnp.float32)
    try:
        logits = jax.eval_shape(lambda x, v: network(v, x).value, images, jax.eval_shape(variables))
    except UserError:
        raise
    except Exception as error:  # a user's module can fail in any way
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the {role} cannot be applied to images {list(config.data.image_shape)}: {text}; "
            f"fix --config.{role}.module, its weights or --config.data.image_shape"
        ) from error
    if getattr(logits, "shape", None) != (2, config.data.num_classes):
        kind = f"shape {list(logits.shape)}" if hasattr(logits, "shape") else f"a {type(logits).__name__}"
        raise UserError(
            f"the {role} returns {kind} for 2 images, not logits [2, {config.data.num_classes}]; "
            f"choose another --config.{role}.module or set --config.data.num_classes"
        )


def distill(config: ConfigDict, workdir: Path, pair: Pair, test: Split | None) -> dict[str, Any]:
    """Distils a student, or resumes its distillation in `workdir`.

    Args:
        config: checked by `validate.check`.
        workdir: receives `metrics.jsonl`, `checkpoints/`, `samples/`, `student/` (the last student),
            `student_best/` (chosen on the test images) and, at the end, `summary.json`.
        pair: the frozen teacher and the student.
        test: used only for evaluation; None measures agreement with the teacher on held-out synthetic images.

    Returns:
        The summary.
    """
    devices = build.devices(config)
    problem = build.problem(config, pair)
    epoch = access.distill_epoch(config)
    net = pair.student_net
    frozen = devices.replicate(pair.teacher_variables)
    measure = StudentEvaluator(
        problem,
        frozen,
        devices,
        batch_size=config.evaluation.batch_size,
        test=test,
        synthetic_images=config.evaluation.synthetic_images,
    )
    teacher = {"arch": pair.teacher_net.arch, **_parameters(pair.teacher_variables), **measure.teacher_metrics}
    if processes.is_first():
        observations.save_teacher(workdir, teacher)
    convergence = _convergence(config, problem, frozen, devices)

    def evaluate(state: RunState) -> Callable[[], dict[str, float]]:
        metrics = measure(state)
        found = convergence(state) if convergence else {}
        return lambda: metrics() | found

    stage = trainer.Stage(
        name="distill",
        folder=workdir,
        epochs=config.distill.epochs,
        steps_per_epoch=epoch.steps,
        images_per_step=config.distill.batch_size,
        init=functools.partial(
            distill_steps.init_state,
            identity.root_key(config, "distill"),
            pair.teacher_variables,
            problem=problem,
            image_shape=net.image_shape,
        ),
        run_epoch=build.distill_epochs(config, problem, pair.teacher_variables, devices),
        frozen=(frozen,),
        evaluate=evaluate,
        devices=devices,
        callbacks=(_BestStudent(workdir / STUDENT_BEST, net), _Pictures(config, workdir, problem, measure)),
        waits=test is None or convergence is not None,
    )
    state, history = trainer.run(stage, build.trainer_options(config))
    summary = distill_summary(
        run=build.description(config),
        history=history,
        teacher=teacher,
        student={"arch": net.arch, **_parameters(state.student.variables)},
        devices=devices,
    )
    if processes.is_first():
        save_net(workdir / STUDENT, _with_metrics(net, history[-1]), jax.device_get(state.student.variables))
        write_json(workdir / SUMMARY, summary)
    return summary


def _convergence(
    config: ConfigDict, problem: Problem, teacher_variables: Any, devices: Devices
) -> MajoriseMinimise | None:
    updates = config.log.majorise_minimise_updates
    if not updates:
        return None
    settings = method_settings(config)
    return MajoriseMinimise(
        problem,
        teacher_variables,
        devices,
        sample_loss=settings.sample_loss(),
        strategy=config.curriculum.strategy,
        lambda_t=settings.lambda_t(),
        batch_size=config.distill.batch_size,
        updates=updates,
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

    def __init__(self, config: ConfigDict, workdir: Path, problem: Problem, measure: StudentEvaluator):
        self._config, self._workdir, self._measure = config, workdir, measure
        self._preview = jax.jit(problem.method.preview, static_argnums=2)

    def inspects(self, epoch: int) -> bool:
        every = self._config.log.samples_every_epochs
        return bool(every) and (epoch % every == 0 or epoch == self._config.distill.epochs)

    def on_epoch_end(self, state: RunState, history: list[Record]) -> Sequence[str]:
        epoch = len(history)
        if not self.inspects(epoch):
            return ()
        folder = self._workdir / SAMPLES
        if processes.is_first():
            images = self._preview(state.aux, purpose_key(state.key, PREVIEW), _PREVIEWED)
            samples.save_grid(folder / f"epoch_{epoch:04d}.png", np.asarray(images))
        synthetic = self._measure.observe(
            state,
            epoch,
            sample_loss=method_settings(self._config).sample_loss(),
            loss=self._config.distill.loss,
            workdir=self._workdir,
            picture=folder / f"classes_{epoch:04d}.png",
        )
        if synthetic is None:  # another process writes and warns
            return ()
        return [*diagnostics.of_images(synthetic), *diagnostics.of_student(history, self._config.data.num_classes)]


def _parameters(variables: Any) -> dict[str, int]:
    return {"parameters": count_parameters(variables["params"])}


def _with_metrics(net: NetworkSpec, record: Record, **more: Any) -> NetworkSpec:
    metrics = {name: record[name] for name in TEST_METRICS if name in record}
    return dataclasses.replace(net, metrics=metrics | more)
