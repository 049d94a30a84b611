"""The data-free stage: a student is distilled, measured on the test images, saved and summed up."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cudfkd_jax import build, records, samples, steps, trainer
from cudfkd_jax.data import Split
from cudfkd_jax.evaluate import evaluate, make_evaluate, make_predict
from cudfkd_jax.files import write_json
from cudfkd_jax.loops import distillation_steps, make_epoch_function
from cudfkd_jax.records import Record
from cudfkd_jax.steps import PREVIEW, Problem, RunState, purpose_key
from cudfkd_jax.summary import SUMMARY, TEST_METRICS, distill_summary
from cudfkd_jax.weights import Net, Trained, save_net

STUDENT, STUDENT_BEST, SAMPLES = "student", "student_best", "samples"
_PREVIEWED = 64  # images in a picture


def check_shapes(config: ConfigDict, teacher: Net, teacher_variables: Any) -> None:
    """Traces both steps without compiling or computing anything.

    Args:
        teacher_variables: arrays or `jax.ShapeDtypeStruct`.

    Raises:
        UserError: what the method needs of the teacher cannot be had.
    """
    problem = build.problem(config, build.classifier(config, teacher))
    init = functools.partial(steps.init_state, problem=problem, image_shape=tuple(config.data.image_shape))
    jax.eval_shape(init, build.root_key(config, "distill"), teacher_variables)


def distill(config: ConfigDict, workdir: Path, teacher: Trained, test: Split) -> dict[str, Any]:
    """Distils a student into `workdir`, from where an earlier call stopped.

    Args:
        config: checked by `build.check`.
        workdir: receives `metrics.jsonl`, `checkpoints/`, `samples/`, `student/` (the last student),
            `student_best/` (chosen on the test images) and, when all is done, `summary.json`.
        teacher: frozen.
        test: only measured on.

    Returns:
        The summary.
    """
    devices = build.devices(config)
    problem = build.problem(config, build.classifier(config, teacher.net))
    epoch = build.distill_epoch(config)
    net = build.described(config, config.student.arch)
    frozen = devices.replicate(teacher.variables)
    batch_size = config.evaluation.batch_size
    teacher_logits = make_predict(problem.teacher, devices, batch_size)(frozen, test.images)
    measure = make_evaluate(problem.student, devices, batch_size, test, teacher_logits)
    best = _BestStudent(workdir / STUDENT_BEST)

    def after_epoch(state: RunState, history: list[Record]) -> None:
        best.offer(net, state, history)
        _save_samples(config, workdir, problem, state, len(history))

    stage = trainer.Stage(
        name="distill",
        folder=workdir,
        epochs=config.distill.epochs,
        steps_per_epoch=epoch.steps,
        images_per_step=config.distill.batch_size,
        init=functools.partial(
            steps.init_state,
            build.root_key(config, "distill"),
            teacher.variables,
            problem=problem,
            image_shape=net.image_shape,
        ),
        run_epoch=make_epoch_function(config.loop, epoch, devices, distillation_steps(problem)),
        frozen=(frozen,),
        evaluate=measure,
        after_epoch=after_epoch,
        after_checkpoint=best.publish,
        devices=devices,
    )
    state, history = trainer.run(stage, build.upkeep(config))
    save_net(workdir / STUDENT, _with_metrics(net, history[-1]), jax.device_get(state.student.variables))
    summary = distill_summary(
        config=config,
        history=history,
        teacher=teacher,
        teacher_metrics=evaluate(teacher_logits, test.labels),
        student=state.student.params,
        devices=devices,
    )
    write_json(workdir / SUMMARY, summary)
    return summary


class _BestStudent:
    """Keeps the best student back until its epoch is in a checkpoint.

    Written at once, it could be of an epoch that a crash makes the run repeat, elsewhere with other bits.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._waiting: tuple[Net, Any] | None = None

    def offer(self, net: Net, state: RunState, history: list[Record]) -> None:
        """Takes the student of the newest epoch if it is the best so far."""
        epoch = len(history)
        best = records.best(history, "acc1")
        if best and best.epoch == epoch:
            chosen = _with_metrics(net, history[-1], epoch=epoch, chosen_on="test images")
            self._waiting = chosen, jax.device_get(state.student.variables)

    def publish(self) -> None:
        """Writes what is waiting."""
        if self._waiting:
            save_net(self._folder, *self._waiting)
            self._waiting = None


def _save_samples(config: ConfigDict, workdir: Path, problem: Problem, state: RunState, epoch: int) -> None:
    every = config.log.samples_every_epochs
    if every and (epoch % every == 0 or epoch == config.distill.epochs):
        images = problem.method.preview(state.aux, purpose_key(state.key, PREVIEW), _PREVIEWED)
        samples.save_grid(workdir / SAMPLES / f"epoch_{epoch:04d}.png", np.asarray(images))


def _with_metrics(net: Net, record: Record, **more: Any) -> Net:
    metrics = {name: record[name] for name in TEST_METRICS if name in record}
    return dataclasses.replace(net, metrics=metrics | more)
