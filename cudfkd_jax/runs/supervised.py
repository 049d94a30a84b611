"""The stages that use data: the teacher, the student from scratch, and ordinary distillation."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from cudfkd_jax.config.jobs import SupervisedJob
from cudfkd_jax.data import Dataset
from cudfkd_jax.evaluation.predict import make_evaluate, make_predict
from cudfkd_jax.evaluation.summary import SUMMARY, TEST_METRICS, common_summary
from cudfkd_jax.models import count_parameters
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.memory import check_fits
from cudfkd_jax.storage.files import write_json
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import save_net
from cudfkd_jax.training import supervised_steps, trainer
from cudfkd_jax.training.loops import Steps, make_epoch_function

NET = "net"


def check_shapes(job: SupervisedJob, dataset: Dataset) -> None:
    """Traces the step without compiling or computing anything.

    Raises:
        UserError: the network does not fit into memory.
    """
    init = functools.partial(supervised_steps.init_state, problem=job.problem)
    images, labels = dataset.splits["train"]
    state = jax.eval_shape(init, job.key, images, labels, *_used_by(job))
    check_fits(job.section, state, job.memory_settings)


def train(job: SupervisedJob, folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Trains a network on data, or resumes its training in `folder`.

    Args:
        job: the training.
        folder: receives `metrics.jsonl`, `checkpoints/`, `net/` and, at the end, `summary.json`.
        dataset: both splits.

    Returns:
        The summary.
    """
    devices, teacher = job.devices, job.teacher
    images, labels = dataset.splits["train"]
    test = dataset.splits["test"]
    batch_size = job.evaluation_batch_size
    teacher_logits = None
    if teacher and job.teacher_network:
        predict = make_predict(job.teacher_network, devices, batch_size)
        teacher_logits = predict(devices.replicate(teacher.variables), test.images)()
    used = _used_by(job)
    stage = trainer.Stage(
        name=job.section,
        folder=folder,
        epochs=job.epochs,
        steps_per_epoch=job.epoch.steps,
        images_per_step=job.problem.batch_size,
        init=lambda: supervised_steps.init_state(job.key, images, labels, *used, problem=job.problem),
        run_epoch=make_epoch_function(
            job.loop,
            job.epoch,
            devices,
            Steps(functools.partial(supervised_steps.supervised_step, problem=job.problem)),
        ),
        frozen=devices.replicate((images, labels, *used)),
        evaluate=make_evaluate(job.problem.network, devices, batch_size, test, teacher_logits),
        devices=devices,
        done=functools.partial(_is_noisy_enough, job.stop_accuracy) if job.stop_accuracy else None,
    )
    state, history = trainer.run(stage, job.options)
    metrics = {name: history[-1][name] for name in TEST_METRICS if name in history[-1]}
    summary = {
        "stage": job.section,
        **common_summary(job.description, history, devices),
        "network": {"arch": job.net.arch, "parameters": count_parameters(state.student.params), **metrics},
    }
    if processes.is_first():
        save_net(
            folder / NET, dataclasses.replace(job.net, metrics=metrics), jax.device_get(state.student.variables)
        )
        write_json(folder / SUMMARY, summary)
    return summary


def _used_by(job: SupervisedJob) -> tuple[Any, ...]:
    return (job.teacher.variables,) if job.teacher and job.problem.distillation else ()


def _is_noisy_enough(stop_accuracy: float, record: Record) -> bool:
    """Returns whether a deliberately noisy teacher (Figure 4) has reached its accuracy."""
    return record.get("acc1", 0.0) >= stop_accuracy
