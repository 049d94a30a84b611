"""The stages that use data: the teacher, the student from scratch, and ordinary distillation."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cudfkd_jax.config import build, identity, networks
from cudfkd_jax.data import Dataset
from cudfkd_jax.evaluation.predict import make_evaluate, make_predict
from cudfkd_jax.evaluation.summary import SUMMARY, TEST_METRICS, common_summary
from cudfkd_jax.models import count_parameters
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.memory import check_fits
from cudfkd_jax.storage.files import write_json
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import Trained, save_net
from cudfkd_jax.training import supervised_steps, trainer
from cudfkd_jax.training.loops import Epoch, Steps, make_epoch_function
from cudfkd_jax.training.supervised_steps import SupervisedProblem

NET = "net"


def check_shapes(config: ConfigDict, section: str, dataset: Dataset, teacher: Trained | None) -> None:
    """Traces the step without compiling or computing anything.

    Raises:
        UserError: the network does not fit into memory.
    """
    problem, _ = _problem(config, section, dataset, teacher)
    init = functools.partial(supervised_steps.init_state, problem=problem)
    images, labels = dataset.splits["train"]
    state = jax.eval_shape(init, identity.root_key(config, section), images, labels, *_used_by(problem, teacher))
    check_fits(section, state, build.memory_settings(config, section))


def train(
    config: ConfigDict, section: str, folder: Path, dataset: Dataset, teacher: Trained | None
) -> dict[str, Any]:
    """Trains a network on data, or resumes its training in `folder`.

    Args:
        config: checked by `validate.check`.
        section: "teacher", "scratch" (the student on labels only) or "kd" (the student with a teacher).
        folder: receives `metrics.jsonl`, `checkpoints/`, `net/` and, at the end, `summary.json`.
        dataset: both splits.
        teacher: required for "kd"; if given, the reference for agreement and loyalty.

    Returns:
        The summary.
    """
    devices = build.devices(config)
    problem, epoch = _problem(config, section, dataset, teacher)
    images, labels = dataset.splits["train"]
    test = dataset.splits["test"]
    batch_size = config.evaluation.batch_size
    teacher_logits = None
    if teacher:
        predict = make_predict(networks.classifier(config, teacher.net), devices, batch_size)
        teacher_logits = predict(devices.replicate(teacher.variables), test.images)()
    stop_accuracy = config.teacher.stop_accuracy if section == "teacher" else 0.0
    used = _used_by(problem, teacher)
    net = networks.described(config, _role(section))
    stage = trainer.Stage(
        name=section,
        folder=folder,
        epochs=config[section].epochs,
        steps_per_epoch=epoch.steps,
        images_per_step=config[section].batch_size,
        init=lambda: supervised_steps.init_state(
            identity.root_key(config, section), images, labels, *used, problem=problem
        ),
        run_epoch=make_epoch_function(
            config.loop,
            epoch,
            devices,
            Steps(functools.partial(supervised_steps.supervised_step, problem=problem)),
        ),
        frozen=devices.replicate((images, labels, *used)),
        evaluate=make_evaluate(problem.network, devices, batch_size, test, teacher_logits),
        devices=devices,
        done=functools.partial(_is_noisy_enough, stop_accuracy) if stop_accuracy else None,
    )
    state, history = trainer.run(stage, build.trainer_options(config))
    metrics = {name: history[-1][name] for name in TEST_METRICS if name in history[-1]}
    summary = {
        "stage": section,
        **common_summary(build.description(config), history, devices),
        "network": {"arch": net.arch, "parameters": count_parameters(state.student.params), **metrics},
    }
    if processes.is_first():
        save_net(folder / NET, dataclasses.replace(net, metrics=metrics), jax.device_get(state.student.variables))
        write_json(folder / SUMMARY, summary)
    return summary


def _problem(
    config: ConfigDict, section: str, dataset: Dataset, teacher: Trained | None
) -> tuple[SupervisedProblem, Epoch]:
    epoch = build.supervised_epoch(config, section, len(dataset.splits["train"].labels))
    network = networks.classifier(config, networks.described(config, _role(section)))
    helper = networks.classifier(config, teacher.net) if teacher and section == "kd" else None
    return build.supervised_problem(config, section, network, epoch, helper), epoch


def _used_by(problem: SupervisedProblem, teacher: Trained | None) -> tuple[Any, ...]:
    return (teacher.variables,) if teacher and problem.distillation else ()


def _is_noisy_enough(stop_accuracy: float, record: Record) -> bool:
    """Returns whether a deliberately noisy teacher (Figure 4) has reached its accuracy."""
    return record.get("acc1", 0.0) >= stop_accuracy


def _role(section: str) -> str:
    return "teacher" if section == "teacher" else "student"
