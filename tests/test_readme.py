"""Checks the README's figures, its tables and those that it leads to, and the programs of its pages."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import PAGES, README, ROOT, blocks, commands, text_of

from cudfkd_jax import main
from cudfkd_jax.config import access, build, files
from cudfkd_jax.evaluation import summary
from cudfkd_jax.methods import METHODS
from cudfkd_jax.runs import stages
from cudfkd_jax.storage import formats, records, weights

_TEXT = text_of(README)
_MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
_TARGETS = dict(re.findall(r"^([a-z-]+):.*## (.+)$", _MAKEFILE, re.MULTILINE))
_OWN = {page.stem: page for page in PAGES}


def _first_cells(page: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \| ", text_of(_OWN[page]), re.MULTILINE)


def _run(folder: str) -> dict:
    return json.loads((ROOT / "results" / folder / "summary.json").read_text(encoding="utf-8"))


def _shown(student: dict, acc1: str = "acc1_last") -> str:
    return f"{student[acc1]:.2f} / {student['agree1']:.2f} / {student['loyalty_released']:.4f}"


def test_is_short():
    assert len(_TEXT.splitlines()) <= 200


def test_every_stage_data_source_format_and_method_is_in_a_table():
    assert {*stages.STAGES} <= {*_first_cells("running")}
    assert {*_first_cells("data")} == {*build.data.SOURCES, access.NO_DATA}
    assert {*_first_cells("export")} == {*formats.FORMATS}
    assert _first_cells("README") == list(METHODS)


def test_demo_matches_the_committed_run():
    assert summary.describe(_run("digits")) + "\n" in blocks(README, "text")


@pytest.mark.parametrize("folder", ["digits", "cifar10_long", "cifar10_runlocal"])
def test_results_are_those_of_the_committed_runs(folder):
    run = _run(folder)
    networks = f"{run['student']['arch']} from {run['teacher']['arch']}"
    assert f"| {networks} | {_shown(run['student'])} ({run['teacher']['acc1']:.2f})" in _TEXT


def test_results_on_a_gpu_are_those_of_the_committed_run():
    """Its teacher's accuracy and its time are in the README of the run alone, for it left no summary."""
    last = records.read(ROOT / "results/gpu/flagship/metrics.jsonl")[-1]
    of_run = (ROOT / "results/gpu/README.md").read_text(encoding="utf-8")
    assert "90.35 %" in of_run and "4 min 24 s" in of_run and last["epoch"] == 61
    assert f"{_shown(last, 'acc1')} (90.35)" in _TEXT
    line = re.search(r"!\[.*?\]\(docs/images/strip\.png\)\n\n\*(.*?)\*\n", _TEXT, re.DOTALL)
    assert line
    for figure in (f"{last['acc1']:.2f} %", "90.35 %", "4 min 24 s", f"{last['epoch']} epochs"):
        assert figure in line[1].replace("\n", " ")


def test_results_of_the_methods_are_those_of_the_committed_comparison():
    def read(name: str) -> dict[str, str]:
        text = (ROOT / "results/digits_compare" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^\| (\w+) \| 3/3 \| (\S+ ± \S+) \|", text, re.MULTILINE))

    means, newer = read("table.md"), read("newer.md")
    values = [float(mean.split()[0]) for mean in means.values()]
    assert means.keys() | newer.keys() == METHODS.keys()
    ada, fast, cudfkd = (newer[name].split()[0] for name in ("adadfkd", "fastdfkd", "cudfkd"))
    assert f"| {ada} and {fast} %, CuDFKD {cudfkd} %, below another teacher" in _TEXT
    assert f"{min(values):.1f} to {max(values):.1f} %, CuDFKD {means['cudfkd']} %" in _TEXT


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_without_a_target_lists_all_of_them():
    expected = (
        "install",
        "demo",
        "test",
        "test-all",
        "lint",
        "docs",
        "bench",
        "parity",
        "torchax",
        "gpu",
        "gpu-carried",
        "gpu-dry-run",
        "clean",
    )
    assert ("help", *expected) == tuple(_TARGETS)
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("  make ")]
    assert [(name, text) for _, name, text in listed] == list(_TARGETS.items())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_is_the_first_line_for_users():
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, last = done.stdout.strip().splitlines()
    assert last.split("/bin/", 1)[1] == next(command for command in commands(README) if "cudfkd" in command)


def test_program_distils_the_teacher_of_the_demo(finished_run, tmp_path, monkeypatch, capsys):
    """Runs the README's program on a run that is there; only the training is left out."""
    (program,) = blocks(README, "python")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits").symlink_to(finished_run)
    _be_tiny(tmp_path, monkeypatch)
    seen = []

    def copy(settings, folder, pair, *more, **options):
        seen.append(pair)
        shutil.copytree(finished_run, folder, dirs_exist_ok=True)

    monkeypatch.setattr(stages, "run_pair", copy)
    exec(program.replace("(16, 16, 1)", "(8, 8, 1)"), {})
    teacher = weights.load_net(finished_run / "teacher/net")
    assert weights.digest(seen[0].teacher_variables) == teacher.sha256
    assert weights.load_net(tmp_path / "student").sha256 == weights.load_net(finished_run / "student").sha256
    assert capsys.readouterr().out.startswith("Result(")


def test_program_gives_logits_of_a_saved_student(tmp_path, monkeypatch):
    (program,) = blocks(_OWN["outputs"], "python")
    net = weights.NetworkSpec("nets:TinyNet", 10, (16, 16, 1), (0.5,), (0.5,), {})
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), net.abstract_variables())
    weights.save_net(tmp_path / "runs/digits/student", net, variables)
    monkeypatch.chdir(tmp_path)
    scope = {"images": np.zeros((2, 16, 16, 1), np.float32)}
    exec(program, scope)
    assert scope["logits"].shape == (2, 10)


@pytest.mark.slow
def test_a_user_network_is_trained_and_distilled_from_python(tmp_path, monkeypatch, capsys):
    """Runs the two programs and the command of "Your own network" on a smaller configuration."""
    module, program, _ = blocks(_OWN["own_network"], "python")
    (command,) = (command for command in commands(_OWN["own_network"]) if "my_nets:Teacher" in command)
    (tmp_path / "my_nets.py").write_text(module, encoding="utf-8")
    _be_tiny(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    assert main.main([*command.split()[1:], "--stage=teacher"]) == 0
    exec(program.replace("(16, 16, 1)", "(8, 8, 1)"), scope := {})
    result = scope["result"]
    assert 0 <= result.metrics["agree1_synthetic"] <= 100 and f"{result.metrics}\n" in capsys.readouterr().out
    assert result.student.variables.keys() == {"params", "batch_stats"}


def _be_tiny(folder: Path, monkeypatch) -> None:
    """Works in a folder where the configuration `digits` is the tiny one."""
    (folder / "configs").mkdir()
    shutil.copy(ROOT / "tests/support/tiny.py", folder / "configs/digits.py")
    monkeypatch.setattr(files, "FOLDER", folder / "configs")
    monkeypatch.chdir(folder)


def test_metrics_and_files_of_a_run_are_explained(finished_run):
    page = text_of(_OWN["outputs"])
    explained = set(re.findall(r"`(\w+)`", page))
    for folder in (finished_run, finished_run / "teacher"):
        assert {key for record in records.read(folder / "metrics.jsonl") for key in record} <= explained
    assert _keys(json.loads((finished_run / "summary.json").read_text())) <= explained
    kept = [path.relative_to(finished_run).parts[0] for path in finished_run.glob("[!.]*")]
    assert not [name for name in kept if f"  {name}" not in page]


def test_losses_of_every_method_are_explained():
    page, sources = text_of(_OWN["outputs"]), [*(ROOT / "cudfkd_jax").glob("[mot]*/**/*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources if "storage" not in path.parts)
    names = set(re.findall(r'"(\w+_(?:loss|norm))"', code)) - {"clip_norm"}  # a setting
    assert {"contrastive_loss", "tv_loss", "attention_loss", "feature_loss"} <= names
    assert not [name for name in names if f"`{name}`" not in page]


def _keys(found: dict) -> set[str]:
    ends = re.compile("_(best|best_epoch)$")  # explained together
    return {key for key in found if not ends.search(key)} | {
        key for part in ("student", "teacher") for key in found[part] if not ends.search(key)
    }


def test_installed_command_shows_the_same_help():
    command = Path(sys.executable).with_name("cudfkd")
    if not command.exists():
        pytest.skip("the package is not installed for this Python")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: cudfkd ")
