"""Tests of the stages: the files that each reads, writes, reuses and leaves unchanged."""

import dataclasses
import itertools
import json
import math
import re
import shlex
import shutil

import jax
import pytest
import tiny
from helpers import flip_byte, snapshot

from cudfkd_jax import data, main
from cudfkd_jax.config import access, identity, loading, networks, validate
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.evaluation.summary import describe
from cudfkd_jax.runs import distill, evaluate, export, stages, supervised
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import weights, workdir
from cudfkd_jax.training import state

DISTILLED = ("config.json", "metrics.jsonl", "summary.json", "checkpoints", "samples", "student", "student_best")
DISTILLED += ("report", "report.html")


def _run(config, stage, folder) -> list[str]:
    said: list[str] = []
    stages.run(config, stage, folder, said.append)
    return said


@pytest.fixture
def refused(monkeypatch):
    """Runs a stage that must fail before compilation, and returns the message."""

    def run(config, stage, folder) -> str:
        def compile_(*args, **kwargs):
            raise AssertionError("compiled")

        before = snapshot(folder.parent)
        with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr("cudfkd_jax.runtime.devices.Devices.compile", compile_)
            stages.run(config, stage, folder)
        assert snapshot(folder.parent) == before
        return str(caught.value)

    return run


@pytest.fixture
def recorded(monkeypatch):
    """Replaces both kinds of training by records of their arguments."""
    calls = []

    def train_(job, folder, dataset):
        calls.append((job.section, folder, sorted(dataset.splits), job.teacher and job.teacher.sha256))
        raise KeyboardInterrupt

    def distill_(job, folder, test, callbacks):
        calls.append(("distill", folder, len(test.labels), weights.digest(job.pair.teacher_variables)))
        raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "train", train_)
    monkeypatch.setattr(distill, "distill", distill_)
    return calls


def _unfinish(folder):
    """Turns a completed data-free run into an interrupted one."""
    for name in ("summary.json", "student", "student_best"):
        path = folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)


def _remove_distilled(folder):
    for name in DISTILLED:
        path = folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)


def test_a_whole_run_leaves_what_it_promises(finished_run, tiny_config):
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    for net in ("teacher/net", "student", "student_best"):
        assert {f"{net}/weights.msgpack", f"{net}/net.json"} <= files
    for part in ("", "teacher/"):
        assert {f"{part}config.json", f"{part}metrics.jsonl", f"{part}summary.json"} <= files
    assert {"samples/epoch_0002.png", "samples/epoch_0004.png"} <= files
    assert len((finished_run / "metrics.jsonl").read_text().splitlines()) == tiny_config.distill.epochs
    held = loading.read_config(finished_run)
    assert access.flatten(held) == {**access.flatten(tiny_config), "log.report": True}


@pytest.mark.parametrize("stage", ["all", "teacher", "distill"])
def test_a_finished_run_says_so_and_does_nothing(run_copy, tiny_config, stage, recorded):
    before = snapshot(run_copy)
    (text,) = _run(tiny_config, stage, run_copy)
    assert f"finished: {run_copy}" in text
    assert snapshot(run_copy) == before
    assert recorded == []


def test_the_end_of_a_run_names_its_report_and_the_next_command(run_copy, tiny_config):
    (text,) = _run(tiny_config, "all", run_copy)
    first, *_, page, command, last = text.splitlines()
    assert re.fullmatch(r"as large as the teacher, [\d.]+ % of the teacher's accuracy", first)
    assert (page, last) == (f"report: {run_copy}/report.html", f"finished: {run_copy}")
    assert command.startswith("next: python -m cudfkd_jax.main --stage=export ")
    (run_copy / "report.html").unlink()
    assert "report:" not in _run(tiny_config, "all", run_copy)[0]
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export", lambda *given: written.append(given))
        assert main.main(shlex.split(command)[4:]) == 0
    assert written == [(run_copy, "orbax")]


@pytest.mark.parametrize(("student", "warned"), [("wrn10_1", True), (tiny.NET, False)])
def test_a_student_larger_than_its_teacher_is_warned_of(tmp_path, tiny_config, recorded, student, warned):
    tiny_config.student.arch = student
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        stages.run(tiny_config, "all", tmp_path, said.append)
    start = f"warning: the student {student} has "
    assert sum(text.startswith(start) for text in said) == warned
    assert not warned or f"more than its teacher {tiny.NET} with " in "".join(said)


def test_a_finished_run_without_its_report_gets_one(run_copy, tiny_config):
    page = run_copy / "report.html"
    tiny_config.log.report = True
    (run_copy / "summary.json").touch()  # the page is older, from before the end of the run
    _run(tiny_config, "all", run_copy)
    assert page.stat().st_mtime_ns >= (run_copy / "summary.json").stat().st_mtime_ns
    page.unlink()
    tiny_config.log.report = False
    _run(tiny_config, "all", run_copy)
    assert not page.exists()


def test_settings_that_change_no_result_may_differ(run_copy, tiny_config):
    tiny_config.checkpoint.keep = 1
    tiny_config.evaluation.batch_size = 7
    tiny_config.log.tensorboard = True
    assert "finished" in _run(tiny_config, "all", run_copy)[0]


def test_all_uses_the_teacher_that_its_workdir_has(run_copy, tiny_config, recorded):
    _remove_distilled(run_copy)
    before = snapshot(run_copy / "teacher")
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_config, "all", run_copy)
    assert recorded == [("distill", run_copy, 359, weights.load_net(run_copy / "teacher/net").sha256)]
    assert snapshot(run_copy / "teacher") == before


def test_all_without_a_teacher_begins_with_one(tmp_path, tiny_config, recorded):
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_config, "all", tmp_path)
    assert recorded == [("teacher", tmp_path / "teacher", ["test", "train"], None)]


@pytest.mark.parametrize("part", ["", "teacher", "teacher/net", "student", "student_best"])
def test_a_teacher_from_another_run(finished_run, tmp_path, tiny_config, recorded, part):
    tiny_config.teacher.checkpoint = str(finished_run / part)
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_config, "all", tmp_path)
    sha256 = weights.load_net(finished_run / (part if "/" in part or "st" in part else "teacher/net")).sha256
    assert recorded == [("distill", tmp_path, 359, sha256)]


def test_distilling_reads_no_training_split(finished_run, tmp_path, tiny_config, monkeypatch):
    asked = []

    def load(request, digits=data.SOURCES["digits"]):
        asked.append(request.splits)
        assert "train" not in request.splits
        return digits(request)

    monkeypatch.setitem(data.SOURCES, "digits", load)
    tiny_config.teacher.checkpoint = str(finished_run)
    _run(tiny_config, "distill", tmp_path)
    assert asked == [("test",)]
    # The run is bit-identical to the one with training data.
    name = "student/weights.msgpack"
    assert (tmp_path / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.long
def test_the_comparisons_train_and_are_measured(run_copy, tiny_config):
    before = {name: snapshot(run_copy / name) for name in ("teacher", "student")}
    for stage in ("scratch", "kd"):
        assert f"finished: {run_copy / stage}" in _run(tiny_config, stage, run_copy)[-1]
        summary = json.loads((run_copy / stage / "summary.json").read_text())
        assert summary["stage"] == stage
        assert summary["network"]["arch"] == tiny_config.student.arch
        assert {"acc1", "agree1", "loyalty"} <= summary["network"].keys()
        measured = evaluate.evaluate_run(tiny_config, run_copy, say=lambda text: None)
        assert measured[stage]["acc1"] == summary["network"]["acc1"]
    assert {name: snapshot(run_copy / name) for name in ("teacher", "student")} == before


def test_evaluation_changes_nothing_and_gives_the_numbers_of_the_summary(run_copy):
    before = snapshot(run_copy)
    said: list[str] = []
    measured = evaluate.evaluate_run(loading.read_config(run_copy), run_copy, said.append)
    assert snapshot(run_copy) == before
    summary = json.loads((run_copy / "summary.json").read_text())
    assert list(measured) == ["teacher", "student", "student_best"]
    assert measured["teacher"]["acc1"] == summary["teacher"]["acc1"]
    assert measured["teacher"]["agree1"] == 100
    student = summary["student"]
    assert measured["student"]["acc1"] == student["acc1_last"]
    assert measured["student_best"]["acc1"] == student["acc1_best"]
    for name in ("acc5", "agree1", "loyalty", "loyalty_released"):
        assert measured["student"][name] == pytest.approx(student[name], rel=1e-6)
    assert said[0].splitlines()[0].split() == list(measured)
    epoch = student["acc1_best_epoch"]
    assert summary["student_best"] == pytest.approx({"epoch": epoch} | measured["student_best"], rel=1e-6)
    assert said[1] == f"student_best: after epoch {epoch}, the best acc@1 on the test images"
    assert "\n".join(said[0].splitlines()[:5]) in describe(summary)  # down to acc@5


def test_evaluation_of_a_teacher_alone(run_copy):
    _remove_distilled(run_copy)
    measured = evaluate.evaluate_run(loading.read_config(run_copy), run_copy, say=lambda text: None)
    assert list(measured) == ["teacher"]


def test_evaluation_needs_a_run(tmp_path, tiny_config):
    with pytest.raises(UserError, match="holds no run"):
        loading.read_config(tmp_path)
    with pytest.raises(UserError, match="holds no trained network yet"):
        evaluate.evaluate_run(tiny_config, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"results": {}}', '{"config": {"sed": 0}}', '{"config": {"seed": "x"}}']
)
def test_a_damaged_saved_configuration_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="damaged or of another version"):
        loading.read_config(tmp_path)


def test_distilling_needs_a_teacher(tmp_path, tiny_config, refused):
    for stage in ("distill", "kd"):
        assert f"--stage={stage} needs a teacher" in refused(tiny_config, stage, tmp_path / "run")


def test_training_a_teacher_that_is_given_is_refused(finished_run, tmp_path, tiny_config, refused):
    tiny_config.teacher.checkpoint = str(finished_run)
    assert "there is no teacher to train" in refused(tiny_config, "teacher", tmp_path / "run")


def test_a_run_of_other_settings_is_refused(run_copy, tiny_config, refused):
    tiny_config.distill.temperature = 3.0
    tiny_config.curriculum.strategy = "soft"
    for stage in ("all", "distill"):
        text = refused(tiny_config, stage, run_copy)
        assert "distill.temperature is 20.0 there and 3.0 here" in text
        assert "curriculum.strategy is 'log' there and 'soft' here" in text
        assert "seed" not in text
    tiny_config.teacher.epochs = 2
    assert "teacher.epochs is 1 there and 2 here" in refused(tiny_config, "teacher", run_copy)


def test_a_run_resumes_only_with_its_teacher(run_copy, tiny_config, refused):
    _unfinish(run_copy)
    other = run_copy.with_name("other")
    net = weights.load_net(run_copy / "teacher" / "net")
    weights.save_net(other, net.net, jax.tree.map(lambda weight: weight + 1, net.variables))
    tiny_config.teacher.checkpoint = str(other)
    assert "teacher weights (sha256) is" in refused(tiny_config, "all", run_copy)


def _with_other_images(monkeypatch):
    """Gives the digits other test images, of the same shape and number."""
    digits = data.SOURCES["digits"]

    def load(request):
        dataset = digits(request)
        test = dataset.splits["test"]
        return dataclasses.replace(
            dataset, splits={**dataset.splits, "test": test._replace(images=255 - test.images)}
        )

    monkeypatch.setitem(data.SOURCES, "digits", load)


@pytest.mark.parametrize("part", ["", "teacher"])
def test_a_run_resumes_only_with_its_test_images(run_copy, tiny_config, refused, recorded, monkeypatch, part):
    shutil.rmtree(run_copy / "teacher" / "net") if part else _unfinish(run_copy)
    if part:
        (run_copy / "teacher" / "summary.json").unlink()
    with pytest.raises(KeyboardInterrupt):  # it resumes
        _run(tiny_config, part or "distill", run_copy)
    _with_other_images(monkeypatch)
    text = refused(tiny_config, part or "distill", run_copy)
    assert f"{run_copy / part} holds a run that began with other test images (digest " in text


def test_a_run_of_before_its_test_images_were_recorded_resumes(run_copy, tiny_config, recorded, monkeypatch):
    _unfinish(run_copy)
    path = run_copy / "config.json"
    held = json.loads(path.read_text())
    del held[workdir.TEST_IMAGES]
    path.write_text(json.dumps(held))
    _with_other_images(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_config, "distill", run_copy)
    assert recorded[0][0] == "distill"


def test_evaluation_on_other_test_images_says_so(run_copy, tiny_config, monkeypatch):
    said: list[str] = []
    _with_other_images(monkeypatch)
    evaluate.evaluate_run(tiny_config, run_copy, said.append)
    assert said[0] == "warning: these are other test images than the run began with"


def test_what_was_not_read_is_said_by_every_stage_that_reads(run_copy, tiny_config, recorded, monkeypatch):
    def load(request, digits=data.SOURCES["digits"]):
        return dataclasses.replace(digits(request), notes=("data: not read: 3",))

    monkeypatch.setitem(data.SOURCES, "digits", load)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        stages.run(tiny_config, "scratch", run_copy, said.append)
    evaluate.evaluate_run(tiny_config, run_copy, said.append)
    tiny_config.teacher.checkpoint = str(run_copy)
    evaluate.evaluate_teacher(tiny_config, said.append)
    assert said.count("data: not read: 3") == 3


def test_summaries_name_the_classes(finished_run):
    for part in ("", "teacher"):
        summary = json.loads((finished_run / part / "summary.json").read_text())
        assert summary["classes"] == list("0123456789")


def test_a_run_whose_teacher_is_gone_does_not_train_another(run_copy, tiny_config, refused):
    _unfinish(run_copy)
    shutil.rmtree(run_copy / "teacher")
    assert "teacher weights (sha256)" in refused(tiny_config, "all", run_copy)


def test_a_run_without_an_intact_checkpoint_is_refused(run_copy, tiny_config, refused):
    _unfinish(run_copy)
    for path in (run_copy / "checkpoints").iterdir():
        if path.is_dir():
            flip_byte(path / "_METADATA")
    assert "every checkpoint in" in refused(tiny_config, "all", run_copy)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{"])
def test_a_damaged_summary_is_refused(run_copy, tiny_config, refused, content):
    (run_copy / "summary.json").write_text(content)
    assert "summary.json is damaged; remove it" in refused(tiny_config, "all", run_copy)


def test_a_run_without_its_summary_only_writes_its_end_again(run_copy, tiny_config):
    before = {name: (run_copy / name).read_bytes() for name in ("metrics.jsonl", "student/weights.msgpack")}
    summary = json.loads((run_copy / "summary.json").read_text())
    (run_copy / "summary.json").unlink()
    _run(tiny_config, "all", run_copy)
    written = json.loads((run_copy / "summary.json").read_text())
    assert written | {"peak_memory_mib": summary["peak_memory_mib"]} == summary  # of this process
    assert {name: (run_copy / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("data.num_classes", 7, "has num_classes 10 and the configuration 7"),
        ("data.image_shape", (16, 16, 1), "has image_shape (8, 8, 1) and the configuration (16, 16, 1)"),
        ("teacher.arch", "wrn16_1", f"has arch {tiny.NET} and the configuration wrn16_1"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(finished_run, tmp_path, tiny_config, refused, key, value, text):
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.update_from_flattened_dict({key: value})
    assert text in refused(tiny_config, "all", tmp_path / "run")


def test_a_teacher_that_is_not_what_it_says_is_refused(run_copy, tiny_config, refused):
    description = json.loads((run_copy / "student/net.json").read_text())
    (run_copy / "student/net.json").write_text(json.dumps(description | {"arch": "wrn16_1"}))
    tiny_config.teacher.update(checkpoint=str(run_copy / "student"), arch="wrn16_1")
    text = refused(tiny_config, "all", run_copy.parent / "other")
    assert "are not those of the network" in text


@pytest.mark.parametrize(
    "damage", ["no folder", "empty", "no weights", "truncated", "flipped byte", "broken JSON"]
)
def test_a_teacher_that_cannot_be_read_is_refused(finished_run, tmp_path, tiny_config, refused, damage):
    net = tmp_path / "net"
    if damage == "empty":
        net.mkdir()
    elif damage != "no folder":
        shutil.copytree(finished_run / "teacher" / "net", net)
    if damage == "no weights":
        (net / "weights.msgpack").unlink()
    elif damage == "truncated":
        (net / "weights.msgpack").write_bytes((net / "weights.msgpack").read_bytes()[:1000])
    elif damage == "flipped byte":
        flip_byte(net / "weights.msgpack", 1000)
    elif damage == "broken JSON":
        (net / "net.json").write_text('{"arch": ')
    tiny_config.teacher.checkpoint = str(net)
    text = refused(tiny_config, "all", tmp_path / "run")
    assert str(net) in text
    assert {"no weights": "no network in", "truncated": "is damaged", "flipped byte": "is damaged"}.get(
        damage, "net.json"
    ) in text


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path, tiny_config, refused):
    tiny_config.teacher.checkpoint = "x" * 300
    assert "File name too long" in refused(tiny_config, "all", tmp_path / "run")


def test_the_student_does_not_start_from_the_teachers_first_weights(tiny_config):
    """Networks of one family share names and shapes, so only their keys distinguish them."""
    network = networks.classifier(tiny_config, networks.described(tiny_config, "student"))
    first = {
        stage: jax.tree.leaves(
            network.init(state.purpose_key(identity.root_key(tiny_config, stage), state.STUDENT_INIT), (8, 8, 1))
        )
        for stage in ("teacher", "scratch", "kd", "distill")
    }
    for a, b in itertools.combinations(first.values(), 2):
        drawn = [(x, y) for x, y in zip(a, b, strict=True) if x.ndim > 1]
        assert drawn and not any((x == y).any() for x, y in drawn)


@pytest.mark.parametrize("name", ["metrics.jsonl", "student", "summary.json"])
def test_files_that_are_no_runs_are_not_written_over(tmp_path, tiny_config, refused, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).mkdir() if name == "student" else (folder / name).write_text("mine")
    assert f"holds {name} but no run" in refused(tiny_config, "all", folder)


def test_evaluate_without_the_teacher_says_so(run_copy):
    config = loading.read_config(run_copy)
    shutil.rmtree(run_copy / "teacher")
    said = []
    config.teacher.checkpoint = "gone"
    measured = evaluate.evaluate_run(config, run_copy, say=said.append)
    assert "measured without the teacher" in said[0] and set(measured) == {"student", "student_best"}
    assert "agree1" not in measured["student"]


def test_a_budget_shortens_a_run_once_and_resuming_keeps_its_length(
    finished_run, tiny_config, tmp_path, monkeypatch
):
    """Stops before the first step: the length is in `config.json` already."""
    paces = iter([Pace(2.0, 10.0), Pace(2.0, 1e-3)])
    monkeypatch.setattr(stages.timing, "distillation_pace", lambda make_job: next(paces))
    lengths = []

    def stop(job, *arguments):
        lengths.append((job.settings.distill.epochs, job.epoch.rounds))
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.distill, "distill", stop)
    for _ in range(2):
        config = tiny.get_config()
        config.teacher.checkpoint, config.distill.budget = str(finished_run), "20s"
        rounds = config.distill.epochs * config.distill.rounds_per_epoch
        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            stages.run(config, "distill", tmp_path / "run", said.append)
        kept = loading.read_config(tmp_path / "run")
        assert (kept.distill.epochs, kept.distill.rounds_per_epoch) == lengths[-1]
        assert math.prod(lengths[-1]) == int((0.9 * 20 - 2) / 40 * rounds)
    assert len(set(lengths)) == 1 and not any("measuring" in text for text in said)
    config.distill.update(epochs=4, budget="1h")
    with pytest.raises(UserError, match=r"distill\.budget is '20s' there and '1h' here"):
        stages.run(config, "distill", tmp_path / "run", said.append)


@pytest.mark.parametrize("text", ["2", "h", "2 h", "0s", "-1h", "1d"])
def test_a_budget_is_a_duration(tiny_config, text):
    tiny_config.distill.budget = text
    with pytest.raises(UserError, match=f"distill.budget={text} is no duration; expected one such as 2h"):
        validate.check(tiny_config)
