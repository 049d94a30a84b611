"""Evaluation of the networks in a run's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax import data
from cudfkd_jax.config import access, budget, build, from_folder, identity, jobs, networks, precision, validate
from cudfkd_jax.evaluation.predict import evaluate, make_predict
from cudfkd_jax.evaluation.summary import best_note, evaluation_table
from cudfkd_jax.runs import distill, supervised, timing
from cudfkd_jax.runs.outlook import outlook
from cudfkd_jax.runs.teacher import find_teacher, verify_teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import weights, workdir
from cudfkd_jax.storage.weights import Trained


def check_own(config: ConfigDict, folder: Path) -> None:
    """Checks that a configuration is that of the run in a folder, if there is one.

    Args:
        config: given beside the folder; settings that a run records at its start are filled in.
        folder: the run's workdir.

    Raises:
        UserError: settings differ that affect the run's results; they are listed with both values.
    """
    validate.check(config)
    from_folder.settle(config, folder)
    precision.settle(config, folder)
    budget.settle(config, folder)
    if begun := workdir.begun_stages(folder):
        stage, place = next(iter(begun.items()))
        teacher = {k: v for k, v in workdir.read_settings(place).items() if k == workdir.TEACHER}
        workdir.check_config(place, identity.result_settings(config, stage) | teacher)


def evaluate_run(config: ConfigDict, folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluates the networks of a run on the test images, without changing any file.

    Args:
        config: the run's configuration; see `read_config`.
        folder: the run's workdir.
        say: receives messages for the user.

    Returns:
        The test metrics by network, for those of "teacher", "student", "student_best", "scratch" and "kd" that
        exist.
    """
    _check(config)
    precision.settle(config, folder)
    teacher = _teacher_of_run(config, folder, say)
    nets = {"teacher": teacher} if teacher else {}
    for name in (distill.STUDENT, distill.STUDENT_BEST, "scratch", "kd"):
        where = folder / name / supervised.NET if name in ("scratch", "kd") else folder / name
        if where.exists():
            nets[name] = weights.load_net(where)
            weights.check_weights(nets[name].variables, nets[name].net.abstract_variables(), where)
    if not nets:
        raise UserError(f"--workdir={folder} holds no trained network yet; run --stage=all first")
    test = build.dataset(config, ("test",), say).splits["test"]
    if workdir.read_test_images(folder) not in (None, data.digest(test)):
        say("warning: these are other test images than the run began with")
    devices, batch_size = build.devices(config), access.get(config, "evaluation.batch_size")
    logits = {
        name: make_predict(networks.classifier(config, net.net), devices, batch_size)(
            devices.replicate(net.variables), test.images
        )()
        for name, net in nets.items()
    }
    measured = {name: evaluate(value, test.labels, logits.get("teacher")) for name, value in logits.items()}
    say(evaluation_table(nets, measured))
    if epoch := distill.STUDENT_BEST in nets and nets[distill.STUDENT_BEST].net.metrics.get("epoch"):
        say(best_note(epoch))
    return measured


def evaluate_teacher(config: ConfigDict, say: Callable[[str], None] = print) -> dict[str, float]:
    """Says what to expect of the teacher that `teacher.checkpoint` names, without a run.

    It is evaluated on the test images, where there are any, and a round of its distillation is timed.

    Args:
        config: with `teacher.checkpoint`.
        say: receives messages for the user.

    Returns:
        Its test metrics; none without test images.
    """
    _check(config, needs_images=False)
    from_folder.settle(config, say=say)
    precision.settle(config)
    source = jobs.teacher_source(config)
    teacher = find_teacher(source, Path(), say)
    assert teacher
    measured = _measure_teacher(config, source, teacher, say) if access.has_images(config) else {}
    _say_outlook(config, teacher, say)
    return measured


def _measure_teacher(
    config: ConfigDict, source: jobs.TeacherSource, teacher: Trained, say: Callable[[str], None]
) -> dict[str, float]:
    test, network = build.dataset(config, ("test",), say).splits["test"], networks.classifier(config, teacher.net)
    verify_teacher(source._replace(verify=False), network, teacher, test, say)
    devices = build.devices(config)
    predict = make_predict(network, devices, access.get(config, "evaluation.batch_size"))
    measured = evaluate(predict(devices.replicate(teacher.variables), test.images)(), test.labels, None)
    say(evaluation_table({"teacher": teacher}, {"teacher": measured}))
    return measured


def _say_outlook(config: ConfigDict, teacher: Trained, say: Callable[[str], None]) -> None:
    try:
        job = jobs.distill_job(config, networks.pair(config, teacher.net, teacher.variables))
        distill.check_shapes(job)
    except UserError as error:
        say(f"this configuration does not distil it: {error}")
        return
    for line in outlook(job, timing.distillation_pace(lambda: job, by_steps=True)):
        say(line)


def _check(config: ConfigDict, *, needs_images: bool = True) -> None:
    validate.check(config)
    validate.check_one_process(config, "--stage=evaluate")
    if needs_images and not access.has_images(config):
        raise UserError(
            f"--stage=evaluate measures on test images and data.source={access.NO_DATA} has none; "
            "name some with --config.data.source"
        )


def _teacher_of_run(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> Trained | None:
    """Returns the teacher of a distilled run; None, with a message, if it is missing or has changed since."""
    try:
        teacher = find_teacher(jobs.teacher_source(config), folder)
    except UserError as error:
        say(f"measured without the teacher: {error}")
        return None
    known = workdir.read_settings(folder).get(workdir.TEACHER) if (folder / workdir.CONFIG).exists() else None
    if teacher and known not in (None, teacher.sha256):
        say("measured without the teacher: it is not the one that the student was distilled from")
        return None
    return teacher
