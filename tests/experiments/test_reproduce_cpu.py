"""Tests of the scale of CPU hours: the releases' schedules in fewer steps, and recorded runs."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from helpers import snapshot

from cudfkd_jax.config import loading
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.evaluation import observations
from cudfkd_jax.experiments import plan, reproduce
from cudfkd_jax.experiments.reproduce import catalogue, estimate, jobs
from cudfkd_jax.methods import METHODS

_ROOT = Path(__file__).parents[2]
_CONFIGS, _SCALE = _ROOT / "configs", "cifar10_cpu"
_SHOWN = ("table2", "fig3", "table5", "fig6")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, _ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _jobs(names, folder, recorded=None, overrides=()):
    return jobs.prepare(catalogue.select(names, _SCALE), _SCALE, folder, _CONFIGS, overrides, recorded)


def _finish(cell):
    """Writes the files of a completed run, including some that must not be recorded."""
    of_stage = cell.folder / cell.part
    (of_stage / "checkpoints").mkdir(parents=True)
    shutil.copy(_ROOT / "results/cifar10_long/metrics.jsonl", of_stage)
    own = {"data.dir": "/home/somebody/data", "teacher.checkpoint": "/home/somebody/teachers/abc"}
    config = {**own, "data.num_classes": 10, "log.report": True}
    (of_stage / "config.json").write_text(json.dumps({"results": {}, "config": config}))
    summary = json.loads((_ROOT / "results/cifar10_long/summary.json").read_text())
    if cell.part:
        summary = summary | {"stage": cell.part, "network": {"arch": "wrn16_1", "acc1": 80.0}}
        del summary["student"], summary["teacher"]
    else:
        counts = {"loyalty": [1, 2], "loyalty_released": [2, 1], "images": [3], "student": [1], "teacher": [2]}
        for epoch in (10, 50):
            synthetic = {"loss": "kl", "difficulty": [0.5], "classes": [1, 2], "spread": 0.1}
            observations.save(observations.path_of(cell.folder, epoch), epoch, synthetic, counts)
    (of_stage / "summary.json").write_text(json.dumps(summary))
    if cell.part == "teacher":
        (of_stage / "net").mkdir()
        (of_stage / "net/weights.msgpack").write_bytes(b"weights")


@pytest.mark.parametrize(("epochs", "rounds"), [(60, 10), (30, 10), (20, 5)])
def test_schedules_pass_through_the_values_of_the_release(epochs, rounds):
    release = loading.load("configs/cifar10.py:teacher=wrn40_2,student=wrn16_1")
    short = loading.load(f"configs/{_SCALE}.py")
    loading.override(short, [f"--config.distill.epochs={epochs}", f"--config.distill.rounds_per_epoch={rounds}"])
    for schedule, tolerance in (
        (lambda c: method_settings(c).lambda_t(), 0.02),
        (lambda c: method_settings(c).alpha_adv(), 1.01 * short.curriculum.alpha),
    ):
        for part in (0.0, 0.2, 0.5, 0.7, 0.999):
            steps = [
                int(part * c.distill.epochs * c.distill.rounds_per_epoch * c.distill.student_steps)
                for c in (release, short)
            ]
            assert float(schedule(short)(steps[1])) == pytest.approx(
                float(schedule(release)(steps[0])), abs=tolerance
            )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_as_many_student_steps_and_computes_in_bfloat16(method):
    config = loading.load_checked(f"configs/{_SCALE}.py:method={method}", [])
    d = config.distill
    assert d.epochs * d.rounds_per_epoch * d.student_steps == 6000
    assert (d.batch_size, config.compute_dtype) == (64, "bfloat16")


def test_all_methods_come_with_one_seed_before_the_next():
    runs = catalogue.ENTRIES["table2"].scales[_SCALE].runs
    assert (
        {run.row for run in runs[:9]}
        == {run.row for run in runs[9:18]}
        == METHODS.keys() - {"adadfkd", "fastdfkd"}
    )
    assert [run.seed for run in runs] == [0] * 9 + [1] * 9 + [0]


def test_other_entries_take_their_methods_from_table_2(tmp_path):
    table2, *others = _jobs(["table2", "fig2", "fig3", "table5"], tmp_path)
    places = {planned.cell.folder for planned in table2.planned}
    assert all(planned.cell.folder in places for job in others for planned in job.planned)
    (fig4,) = _jobs(["fig4"], tmp_path)
    shared = [
        run.column
        for run, planned in zip(fig4.setting.runs, fig4.planned, strict=True)
        if planned.cell.folder in places
    ]
    assert shared == ["clean teacher"] * 4


def test_recorded_runs_are_finished_and_the_entries_written_from_them(tmp_path, monkeypatch):
    """Records a workdir, and writes tables and figures from the record in an empty workdir."""
    work_folder, recorded, empty = tmp_path / "work", tmp_path / "results", tmp_path / "empty"
    cells = [planned.cell for planned in jobs.all_runs(_jobs(_SHOWN, work_folder))]
    for cell in cells:
        _finish(cell)
    (work_folder / "table2").mkdir()
    (work_folder / "table2/table2.md").write_text("a table")
    record = _script("record")
    assert record.main([str(work_folder), str(recorded)]) == 0
    assert record.record(work_folder, recorded) == []  # everything is recorded
    assert (recorded / "table.md").read_text() == "a table"
    kept = {path.name for path in recorded.rglob("*") if path.is_file()}
    assert kept == {"summary.json", "metrics.jsonl", "config.json", "epoch_0050.json", "table.md"}
    assert not any("somebody" in path.read_text() for path in recorded.rglob("*.json"))

    before = snapshot(recorded)
    monkeypatch.setattr(plan.launcher, "_run", lambda cell, leash: pytest.fail(f"{cell.name} was started"))
    said = []
    results = reproduce.reproduce(_SHOWN, _SCALE, empty, _CONFIGS, recorded=recorded, say=said.append)
    assert all(result.outcome.summary for result in results)
    assert "19 runs, 19 finished" in said[0] and not any("estimate" in text for text in said)
    assert snapshot(recorded) == before
    text = (empty / "table2/table2.md").read_text(encoding="utf-8")
    for heading in (
        "agree@1 best %",
        "loyalty |",
        "stability variance",
        "wall min",
        "images/s",
        "paper's acc@1 %",
    ):
        assert heading in text
    assert "| CuDFKD | 2/2 |" in text and "| 92.94 | 95.15 | 0.8477 |" in text
    assert all((empty / name / f"{name}.png").exists() for name in ("fig3", "fig6"))
    assert "student steps" in (empty / "fig3/fig3.svg").read_text(encoding="utf-8")


def test_a_recorded_teacher_is_distilled_from(tmp_path):
    (job,) = _jobs(["fig2"], tmp_path / "work")
    _finish(job.planned[0].teacher)
    _script("record").record(tmp_path / "work", tmp_path / "results")
    (job,) = _jobs(["fig2"], tmp_path / "empty", tmp_path / "results")
    assert plan.missing_teachers(job.planned) == []
    teacher = tmp_path / "results/teachers" / job.planned[0].teacher.folder.name
    assert f"--config.teacher.checkpoint={teacher}" in job.planned[0].cell.arguments
    assert (teacher / "teacher/net/weights.msgpack").exists()


def test_runs_with_other_settings_are_not_taken(tmp_path):
    for planned in jobs.all_runs(_jobs(["fig6"], tmp_path)):
        _finish(planned.cell)
    for overrides, finished in (((), 12), (("--config.distill.learning_rate=0.2",), 0)):
        (job,) = _jobs(["fig6"], tmp_path / "empty", tmp_path, overrides)
        assert jobs.count(job.planned) == (12, finished)


def test_a_dry_run_estimates_the_time_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "check_surroundings", lambda planned: None)
    monkeypatch.setattr(estimate, "measure_elsewhere", lambda wanted, section: Pace(0.0, 60.0))
    monkeypatch.setattr(plan, "run", lambda *given, **options: pytest.fail("started"))
    arguments = ["fig6", f"--scale={_SCALE}", f"--workdir={tmp_path / 'new'}", "--dry-run"]
    assert _script("reproduce").main(arguments) == 0
    assert "estimate: 6 h 30 min for 12 runs" in capsys.readouterr().out  # 12 × 30 epochs and the teacher's 30
    assert not (tmp_path / "new").exists()


def test_changes_stand_beside_the_first_row_by_seed(tmp_path):
    (job,) = _jobs(["short"], tmp_path)
    lines = {}
    for run, planned in zip(job.setting.runs, job.planned, strict=True):
        config = plan.load(planned.wanted)
        lines.setdefault(run.row, set()).add(
            config.distill.epochs
            * config.distill.rounds_per_epoch
            * config.distill.student_steps
            * config.distill.batch_size
        )
    assert all(images == {2000 * 64} for images in lines.values())
    for place, planned in enumerate(job.planned):
        _finish(planned.cell)
        path = planned.cell.folder / "summary.json"
        summary = json.loads(path.read_text())
        summary["student"]["acc1_last"] = 50.0 + 10 * (place % 2) + (place >= 2)  # seed 1 is 10 better
        path.write_text(json.dumps(summary))
    reproduce.reproduce(["short"], _SCALE, tmp_path / "empty", _CONFIGS, recorded=tmp_path, say=lambda text: None)
    text = (tmp_path / "empty/short/short.md").read_text(encoding="utf-8")
    assert "| λ0 4 | `curriculum.lambda_0=4.0` | 2/2 | 56.00 ± 7.07 |" in text
    assert text.count("| 1.00 ± 0.00 |") == len(lines) - 1
