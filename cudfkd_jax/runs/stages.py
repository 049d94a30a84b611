"""The stages of a run, their order and their folders.

    teacher/   the trained teacher            scratch/, kd/   the student trained on data, for comparison
    the top    the data-free run: everything else

All errors in a configuration, a teacher or the data are found before a folder is touched.

Of several processes, only the first touches the folder; it sends the folder's state and the teacher to the others.
Each process reads the data itself.
"""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cudfkd_jax import data, report
from cudfkd_jax.config import access, budget, build, from_folder, identity, jobs, networks, precision, validate
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.jobs import DistillJob, Job, SupervisedJob
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.data import Dataset, Split
from cudfkd_jax.evaluation.summary import DAMAGED, SUMMARY, describe, read_summary
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.capture import has_batch_norm
from cudfkd_jax.runs import distill, supervised, timing
from cudfkd_jax.runs.teacher import find_teacher, verify_teacher
from cudfkd_jax.runtime import cli, processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import is_import_path
from cudfkd_jax.runtime.memory import enough_memory
from cudfkd_jax.storage import checkpoint, weights, workdir
from cudfkd_jax.storage.weights import Trained
from cudfkd_jax.training import trainer
from cudfkd_jax.training.trainer import Callback

_WRITTEN = (
    *(trainer.METRICS, SUMMARY, trainer.CHECKPOINTS, supervised.NET),
    *(distill.STUDENT, distill.STUDENT_BEST, report.REPORT),
)
_FOLDERS = (
    *(trainer.CHECKPOINTS, supervised.NET, distill.STUDENT, distill.STUDENT_BEST, distill.SAMPLES),
    *(report.FOLDER, trainer.TENSORBOARD),
)
STAGES = ("all", "teacher", "scratch", "kd", "distill", "evaluate", "export", "report")


def run(config: ConfigDict, stage: str, folder: Path, say: Callable[[str], None] = print) -> None:
    """Runs or resumes a stage, or reports that it is finished.

    Args:
        config: the run's configuration.
        stage: one of `STAGES` except "evaluate", "export" and "report".
        folder: the run's workdir.
        say: receives messages for the user.

    Raises:
        UserError: before anything is compiled or written; in every process if any process fails.
        OutOfMemoryError: names the settings to lower.
    """
    validate.check_processes(config)
    build.connect(config, say)
    say = say if processes.is_first() else _say_nothing
    processes.together(lambda: validate.check(config))
    from_folder.settle(config, folder, say)
    precision.settle(config, folder)
    budget.settle(config, folder)
    identity.check_same(config, stage)
    found = processes.from_first(lambda: _look(config, stage, folder, say))
    parts, teacher = found["parts"], found["teacher"] and weights.unpack(found["teacher"])
    if not parts:
        return
    dataset, checked = processes.together(lambda: _prepare(config, parts, teacher, say))
    processes.from_first(lambda: _check_test_images(parts, folder, dataset))
    processes.from_first(lambda: _verify(config, parts, folder, dataset, teacher, say))
    _advise(config, say)
    with _locked(folder, say):
        for part in parts:
            with enough_memory(part, build.memory_settings(config, part)):
                teacher = _run_part(config, part, checked[part], folder, dataset, teacher, say)
            processes.from_first(functools.partial(_say_results, _folder(folder, part), say))


def _look(config: ConfigDict, stage: str, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the unfinished parts of a stage, and the packed teacher, if any; changes nothing."""
    workdir.check_writable(folder)
    workdir.check_free(folder)
    source = jobs.teacher_source(config)
    if stage == "teacher" and source.is_given:
        given = f"checkpoint={source.checkpoint}" if source.checkpoint else f"module={source.net.arch}"
        raise UserError(
            f"teacher.{given} is given, so there is no teacher to train; leave it out, or choose another --stage"
        )
    teacher = find_teacher(source, folder, say)
    parts = ["teacher", "distill"] if stage == "all" else [stage]
    if stage == "all" and teacher:
        parts.remove("teacher")
    if teacher is None and stage in ("kd", "distill"):
        raise UserError(
            f"--stage={stage} needs a teacher and {folder} has none; run --stage=teacher first "
            "or give --config.teacher.checkpoint"
        )
    validate.check_devices(config, parts)
    with_data = [part for part in parts if part != "distill"]
    if with_data and not access.has_images(config):
        raise UserError(
            f"data.source={access.NO_DATA} has no images to train on, as --stage={with_data[0]} does; "
            "name the data with --config.data.source, or a trained teacher with --config.teacher.checkpoint"
        )
    for part in parts:
        _check_folder(folder, _folder(folder, part))
        workdir.check_config(_folder(folder, part), _settings(config, part, teacher))
    done = [part for part in parts if (_folder(folder, part) / SUMMARY).exists()]
    for part in done:
        _say_results(_folder(folder, part), say)
    if "distill" in done:
        _report(access.get(config, "log.report"), folder)
    parts = [part for part in parts if part not in done]
    for part in parts:
        checkpoint.find_newest(_folder(folder, part) / trainer.CHECKPOINTS)
    return {"parts": parts, "teacher": teacher and weights.pack(teacher)}


def _prepare(
    config: ConfigDict, parts: list[str], teacher: Trained | None, say: Callable[[str], None]
) -> tuple[Dataset | None, dict[str, Job]]:
    """Loads the data that the parts need and builds their jobs, whose networks accept the data."""
    dataset = None
    if access.has_images(config):
        dataset = build.dataset(config, ("test",) if parts == ["distill"] else ("train", "test"), say)
    return dataset, {part: _checked_job(config, part, dataset, teacher, say) for part in parts}


def _check_test_images(parts: list[str], folder: Path, dataset: Dataset | None) -> None:
    digest = _digest(dataset.splits["test"] if dataset else None)
    for part in parts:
        workdir.check_test_images(_folder(folder, part), digest)


def _digest(test: Split | None) -> str | None:
    return data.digest(test) if test else None


def _verify(
    config: ConfigDict,
    parts: list[str],
    folder: Path,
    dataset: Dataset | None,
    teacher: Trained | None,
    say: Callable[[str], None],
) -> None:
    """Verifies a teacher from elsewhere before the first step of a data-free run."""
    source = jobs.teacher_source(config)
    if source.is_given and teacher and dataset and "distill" in parts and not (folder / workdir.CONFIG).exists():
        network = networks.classifier(config, teacher.net)
        verify_teacher(source, network, teacher, dataset.splits["test"], say)


def _verify_pair(
    config: ConfigDict, pair: Pair, file: str, folder: Path, test: Split | None, say: Callable[[str], None]
) -> None:
    """Verifies a teacher passed as an object or read from a file before the first step."""
    if test is not None and not (folder / workdir.CONFIG).exists():
        source = jobs.teacher_source(config)._replace(checkpoint=file)
        verify_teacher(source, pair.teacher, Trained(pair.teacher_net, pair.teacher_variables, ""), test, say)


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Locks the folder for the first process."""
    with contextlib.ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(workdir.lock(folder, say)))
        yield


def run_pair(
    config: ConfigDict,
    folder: Path,
    pair: Pair,
    test: Split | None,
    say: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
    *,
    teacher_file: str = "",
) -> None:
    """Starts or resumes distillation of networks passed as objects, as `run` does for configured networks.

    Args:
        config: checked, with a settled dtype, in which the networks were built.
        folder: the run's workdir.
        pair: teacher and student.
        test: used only for evaluation; None without data.
        say: receives messages for the user.
        callbacks: further hooks into the training.
        teacher_file: what the teacher was read from; "": it is an object of the caller's.

    Raises:
        UserError: before anything is compiled or written.
        OutOfMemoryError: names the settings to lower.
    """
    budget.settle(config, folder)
    digest = _digest(test)

    def settings() -> dict[str, Any]:
        found = identity.result_settings(config, "distill")
        return {**found, workdir.TEACHER: weights.digest(pair.teacher_variables)}

    def is_finished() -> bool:
        workdir.check_writable(folder)
        workdir.check_free(folder)
        validate.check_devices(config, ["distill"])
        _check_folder(folder, folder)
        workdir.check_config(folder, settings())
        workdir.check_test_images(folder, digest)
        if (folder / SUMMARY).exists():
            return True
        checkpoint.find_newest(folder / trainer.CHECKPOINTS)
        return False

    def begin() -> None:
        workdir.check_config(folder, settings())
        workdir.check_test_images(folder, digest)
        workdir.write_config(folder, settings(), _found_from_anywhere(config), digest)

    identity.check_same(config, "distill")
    if processes.from_first(is_finished):
        return
    say = say if processes.is_first() else _say_nothing
    job = processes.together(lambda: _checked(jobs.distill_job(config, pair)))
    _compare_sizes(pair, say)
    processes.from_first(lambda: _verify_pair(config, pair, teacher_file, folder, test, say))
    _advise(config, say)
    with _locked(folder, say):
        if _shorten(config, folder, pair, say):
            job = jobs.distill_job(config, pair)
        processes.from_first(begin)
        with enough_memory("distill", job.memory_settings):
            _distill(job, folder, test, say, callbacks)


def _run_part(
    config: ConfigDict,
    part: str,
    job: Job,
    folder: Path,
    dataset: Dataset | None,
    teacher: Trained | None,
    say: Callable[[str], None],
) -> Trained | None:
    part_folder, test = _folder(folder, part), dataset.splits["test"] if dataset else None
    if isinstance(job, DistillJob):
        assert teacher
        pair = job.pair._replace(teacher_net=teacher.net, teacher_variables=teacher.variables)
        # The problem is the one that was checked: its steps need not be traced again.
        job = dataclasses.replace(job, pair=pair)
        if _shorten(config, folder, pair, say):
            job = jobs.distill_job(config, pair, job.description.classes)
    settings = _settings(config, part, teacher)

    def begin() -> None:
        digest = _digest(test)
        workdir.check_config(part_folder, settings)
        workdir.check_test_images(part_folder, digest)
        workdir.write_config(part_folder, settings, _found_from_anywhere(config), digest)

    processes.from_first(begin)
    if isinstance(job, DistillJob):
        _distill(job, part_folder, test, say)
        return teacher
    assert dataset and isinstance(job, SupervisedJob)
    supervised.train(job, part_folder, dataset)
    if part != "teacher":
        return teacher
    return weights.unpack(
        processes.from_first(lambda: weights.pack(weights.load_net(part_folder / supervised.NET)))
    )


def _shorten(config: ConfigDict, folder: Path, pair: Pair, say: Callable[[str], None]) -> bool:
    """Shortens a run that begins to `distill.budget`, by the pace of a measured round; returns whether it did."""
    if not config.distill.budget or processes.from_first(lambda: (folder / workdir.CONFIG).exists()):
        return False
    say(f"distill: measuring a round, to fit into {config.distill.budget}")
    measured = timing.distillation_pace(lambda: jobs.distill_job(config, pair))
    share = budget.shorten(config, Pace(*processes.from_first(lambda: tuple(measured))))
    length = f"{config.distill.epochs} epochs of {config.distill.rounds_per_epoch} rounds"
    say(f"distill: {length}, {share:.0%} of the steps that the configuration asks for")
    return True


def _found_from_anywhere(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings to save, with paths independent of the current directory."""
    whole = access.kept(config)
    for key in ("teacher.checkpoint", "data.dir"):
        if whole[key] and "://" not in whole[key]:
            whole[key] = str(Path(whole[key]).expanduser().absolute())
    return whole


def _distill(
    job: DistillJob,
    folder: Path,
    test: Split | None,
    say: Callable[[str], None],
    callbacks: Sequence[Callback] = (),
) -> None:
    if job.settings.synthesis.bn_weight and not has_batch_norm(job.pair.teacher_variables):
        say("the teacher has no BatchNorm: it is distilled without the BN term")
    distill.distill(job, folder, test, callbacks)
    processes.from_first(lambda: _report(job.report, folder))


def _check_folder(workdir_: Path, folder: Path) -> None:
    """Rejects a stage folder that belongs to no run or leads out of its workdir."""
    workdir.check_own(folder, _WRITTEN)
    workdir.check_links(workdir_, (folder, *(folder / name for name in _FOLDERS)))


def _report(wanted: bool, folder: Path) -> None:
    if wanted and report.is_missing(folder):
        report.write_report(folder)


def _advise(config: ConfigDict, say: Callable[[str], None]) -> None:
    if text := precision.advice(config):
        say(text)


def _say_nothing(text: str) -> None:
    pass


def _checked_job(
    config: ConfigDict, part: str, dataset: Dataset | None, teacher: Trained | None, say: Callable[[str], None]
) -> Job:
    """Builds the job of a part; a data-free one has the shapes of a teacher that is still to be trained."""
    if part == "distill":
        net = teacher.net if teacher else networks.described(config, "teacher")
        variables = teacher.variables if teacher else net.abstract_variables()
        pair = networks.pair(config, net, variables)
        job = _checked(jobs.distill_job(config, pair, dataset.classes if dataset else ()))
        _compare_sizes(pair, say)
        return job
    assert dataset
    images = len(dataset.splits["train"].labels)
    training = jobs.supervised_job(config, part, images, teacher, dataset.classes)
    supervised.check_shapes(training, dataset)
    return training


def _compare_sizes(pair: Pair, say: Callable[[str], None]) -> None:
    """Warns of a student with more parameters than its teacher; a teacher that is a function has none."""
    student_shapes = jax.eval_shape(lambda: pair.student.init(jax.random.key(0), pair.student_net.image_shape))
    student, teacher = (count_parameters(v["params"]) for v in (student_shapes, pair.teacher_variables))
    if student > teacher > 0:
        say(
            f"warning: the student {pair.student_net.arch} has {student:,} parameters, more than its teacher "
            f"{pair.teacher_net.arch} with {teacher:,}; set --config.student.arch to distil into a smaller one"
        )


def _checked(job: DistillJob) -> DistillJob:
    distill.check_shapes(job)
    return job


def _settings(config: ConfigDict, part: str, teacher: Trained | None) -> dict[str, Any]:
    settings = identity.result_settings(config, part)
    if part in ("kd", "distill"):
        settings[workdir.TEACHER] = teacher.sha256 if teacher else None
    return settings


def _folder(folder: Path, part: str) -> Path:
    return folder if part == "distill" else folder / part


def _say_results(folder: Path, say: Callable[[str], None]) -> None:
    """Reports the results of a stage that is finished in its folder."""
    summary = read_summary(folder)
    try:
        text = describe(summary)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SUMMARY} is damaged{DAMAGED}") from error
    say("\n".join((text, *_where_next(folder, summary), f"finished: {folder}")))


def _where_next(folder: Path, summary: dict[str, Any]) -> list[str]:
    """Returns lines for a distilled student: the path of its report, if there is one, and the next command."""
    if "student" not in summary:
        return []
    page = folder / report.REPORT
    # PyTorch has no names for the weights of a module of the user's own.
    format_ = "orbax" if is_import_path(summary["student"]["arch"]) else "safetensors"
    command = f"{cli.program()} --stage=export --workdir={shlex.quote(str(folder))} --format={format_}"
    return [*([f"report: {page}"] if page.exists() else []), f"next: {command}"]
