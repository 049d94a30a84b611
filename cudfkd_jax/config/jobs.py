"""Jobs: what a configuration asks of a data-free run or of a training on data, without the configuration."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cudfkd_jax.config import access, build, from_folder, identity, methods, networks, precision, validate
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.data import Split
from cudfkd_jax.evaluation.summary import RunDescription
from cudfkd_jax.methods.context import MethodSettings
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.runtime.imports import is_torch_path
from cudfkd_jax.storage.weights import NetworkSpec, Trained
from cudfkd_jax.training import trainer
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import Epoch
from cudfkd_jax.training.supervised_steps import SupervisedProblem
from cudfkd_jax.training.trainer import TrainerOptions


@dataclasses.dataclass(frozen=True)
class Job:
    """What every run needs.

    Attributes:
        epoch: the schedule of steps in an epoch.
        key: the root random key.
        devices: the devices of the run, across all its processes.
        loop: one of `loops.LOOPS`.
        evaluation_batch_size: batch size for predictions.
        options: the trainer's.
        description: what a summary repeats.
        memory_settings: by dotted key, the settings to lower if memory runs out.
    """

    epoch: Epoch
    key: jax.Array
    devices: Devices
    loop: str
    evaluation_batch_size: int
    options: TrainerOptions
    description: RunDescription
    memory_settings: dict[str, int]


@dataclasses.dataclass(frozen=True)
class DistillJob(Job):
    """A data-free run.

    Attributes:
        pair: the frozen teacher and the student.
        problem: the method, the networks and the student's optimiser.
        settings: the method's settings, among them the number of epochs and the batch size.
        batches_at_once: see `defaults.py`; 0: as many as device memory allows.
        synthetic_images: held-out images for agreement where there are no test images.
        samples_every_epochs: interval of pictures and difficulty; 0: none.
        majorise_minimise_updates: updates per evaluation on which Eq. 8 is tested; 0: none.
        report: whether to write `report.html`.
    """

    pair: Pair
    problem: Problem
    settings: MethodSettings
    batches_at_once: int
    synthetic_images: int
    samples_every_epochs: int
    majorise_minimise_updates: int
    report: bool


@dataclasses.dataclass(frozen=True)
class SupervisedJob(Job):
    """A training on data.

    Attributes:
        section: "teacher", "scratch" (the student on labels only) or "kd" (the student with a teacher).
        net: describes the trained network.
        problem: the network, its optimiser and its loss.
        epochs: number of epochs.
        stop_accuracy: test accuracy in percent that ends the training early; 0: none.
        teacher: the reference for agreement and loyalty, and the teacher of "kd".
        teacher_network: its module.
    """

    section: str
    net: NetworkSpec
    problem: SupervisedProblem
    epochs: int
    stop_accuracy: float
    teacher: Trained | None
    teacher_network: Classifier | None


class TeacherSource(NamedTuple):
    """Where a run's teacher comes from.

    Attributes:
        checkpoint: a trained network or the workdir of another run; "": the run trains its teacher, or takes a
            PyTorch module's own weights.
        checkpoint_key: the entry or item of the checkpoint with the weights; "": the first of the usual ones.
        net: describes the teacher that the configuration asks for.
        is_module: whether it is the user's own module.
        is_torch: whether it is a PyTorch module, which is used as it is and not trained here.
        is_given: whether it comes from elsewhere with its weights.
        verify: whether a teacher that does not recognise the test images stops the run.
        padding, flip: the augmentation in training on these data.
        settings: the settings that identify a teacher trained by the run.
    """

    checkpoint: str
    checkpoint_key: str
    net: NetworkSpec
    is_module: bool
    is_torch: bool
    is_given: bool
    verify: bool
    padding: int
    flip: bool
    settings: dict[str, Any]


def teacher_source(config: ConfigDict) -> TeacherSource:
    """Returns where the configuration's teacher comes from."""
    return TeacherSource(
        checkpoint=config.teacher.checkpoint,
        checkpoint_key=config.teacher.checkpoint_key,
        net=networks.described(config, "teacher"),
        is_module=bool(config.teacher.module),
        is_torch=is_torch_path(config.teacher.module),
        is_given=access.gives_teacher(config),
        verify=config.teacher.verify,
        padding=config.data.padding,
        flip=config.data.flip,
        settings=identity.result_settings(config, "teacher"),
    )


def distill_job(config: ConfigDict, pair: Pair, classes: Sequence[str] = ()) -> DistillJob:
    """Builds the job of distilling a pair of networks without data.

    Args:
        config: checked, with a settled dtype.
        pair: the teacher's variables may be shapes, to check them.
        classes: names of the classes in label order, if known.

    Raises:
        UserError: the networks do not provide logits or what the method needs.
    """
    networks.check_logits(pair)
    return DistillJob(
        **_common(config, "distill", classes),
        epoch=access.distill_epoch(config),
        pair=pair,
        problem=build.problem(config, pair),
        settings=methods.method_settings(config),
        batches_at_once=config.batches_at_once,
        synthetic_images=config.evaluation.synthetic_images,
        samples_every_epochs=config.log.samples_every_epochs,
        majorise_minimise_updates=config.log.majorise_minimise_updates,
        report=config.log.report,
    )


def untrained_job(config: ConfigDict) -> DistillJob:
    """Checks a configuration and builds its job around a teacher with random weights, as fast as trained ones.

    Raises:
        UserError: a setting is out of range.
    """
    validate.check(config)
    from_folder.settle(config)
    validate.check_devices(config, ["distill"])
    precision.settle(config)
    net = networks.described(config, "teacher")
    network = networks.classifier(config, net)
    key = identity.root_key(config, "distill")
    variables = trainer.initialise(lambda: network.init(key, net.image_shape))
    return distill_job(config, networks.pair(config, net, variables))


def supervised_job(
    config: ConfigDict, section: str, images: int, teacher: Trained | None, classes: Sequence[str] = ()
) -> SupervisedJob:
    """Builds the job of training a network on data.

    Args:
        config: checked, with a settled dtype.
        section: see `SupervisedJob`.
        images: number of training images.
        teacher: required for "kd".
        classes: names of the classes in label order, if known.

    Raises:
        UserError: `images` is less than the batch size, or the run has too many steps to count.
    """
    net = networks.described(config, "teacher" if section == "teacher" else "student")
    helper = networks.classifier(config, teacher.net) if teacher else None
    epoch = build.supervised_epoch(config, section, images)
    problem = build.supervised_problem(config, section, networks.classifier(config, net), epoch, helper)
    return SupervisedJob(
        **_common(config, section, classes),
        epoch=epoch,
        section=section,
        net=net,
        problem=problem,
        epochs=config[section].epochs,
        stop_accuracy=config.teacher.stop_accuracy if section == "teacher" else 0.0,
        teacher=teacher,
        teacher_network=helper,
    )


def first_supervised_job(config: ConfigDict, section: str) -> tuple[SupervisedJob, Split]:
    """Checks a configuration and builds the job of training on data without a teacher, with its training images.

    Raises:
        UserError: a setting is out of range, or the data cannot be read.
    """
    validate.check_devices(config, [section])
    precision.settle(config)
    images = build.dataset(config, ("train",)).splits["train"]
    return supervised_job(config, section, len(images.labels), None), images


def _common(config: ConfigDict, part: str, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "key": identity.root_key(config, part),
        "devices": build.devices(config),
        "loop": config.loop,
        "evaluation_batch_size": config.evaluation.batch_size,
        "options": build.trainer_options(config),
        "description": build.description(config, classes),
        "memory_settings": build.memory_settings(config, part),
    }
