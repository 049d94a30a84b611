"""Runs the programs of examples/ as their readers do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_EXAMPLES = Path(__file__).parents[2] / "examples"
_NOTEBOOK = _EXAMPLES / "from_pytorch.ipynb"
_MINUTES = 10


@pytest.mark.slow
@pytest.mark.parametrize("script", ["distill_digits.py", "distill_nnx_digits.py"])
def test_script_distils_the_digits(script, tmp_path):
    command = [sys.executable, _EXAMPLES / script]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=60 * _MINUTES
    )
    assert done.returncode == 0, done.stderr
    (teacher,) = re.findall(r"^teacher acc@1 (\S+) %$", done.stdout, re.MULTILINE)
    (student,) = re.findall(r"^Result\(.*acc@1 (\S+) %, .*\)$", done.stdout, re.MULTILINE)
    assert float(teacher) > 95 and float(student) > 90
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_twenty_lines_distil_the_teacher_of_a_run(tmp_path):
    """Runs the two commands of its docstring."""
    script = _EXAMPLES / "distill_run.py"
    train = re.search(r"^cudfkd (.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    for command in (["-m", "cudfkd_jax", *train], [script]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=60 * _MINUTES,
        )
        assert done.returncode == 0, done.stderr
    (agreement,) = re.findall(r"^Result\(.* agree@1 on synthetic images (\S+) %\)$", done.stdout, re.MULTILINE)
    assert float(agreement) > 60
    assert (tmp_path / "runs/from_python/export/safetensors/student.safetensors").exists()


@pytest.mark.slow
def test_notebook_brings_a_student_back_to_pytorch(tmp_path, monkeypatch):
    """Executes every cell; one of them compares the logits of both sides."""
    pytest.importorskip("torch")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(_NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=60 * _MINUTES, resources=resources).execute()
    *_, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (student,) = re.findall(r"student\.pth: (\S+) %", last.outputs[0].text)
    assert float(student) > 80
    assert (tmp_path / "runs/from_pytorch/export/torch/student.pth").exists()


@pytest.mark.slow
def test_a_run_in_a_notebook_has_one_bar_and_a_line_per_epoch(monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    source = """
from cudfkd_jax.training.progress import Progress
with Progress("distill", epochs=2, steps_per_epoch=1, first_step=0, tensorboard=None) as progress:
    for epoch in (1, 2):
        progress.step(epoch)
        progress.epoch({"epoch": epoch, "acc1": 50.0, "agree1": 60.0})
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    bar, *said = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in bar.data
    lines = "".join(each.text for each in said).splitlines()
    assert len(lines) == 2 and all("acc@1  50.00 %  agree@1  60.00 %" in line for line in lines)


def test_notebook_is_kept_as_executed_from_top_to_bottom_and_small():
    cells = [
        cell for cell in json.loads(_NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert _NOTEBOOK.stat().st_size < 100_000


def _environment() -> dict[str, str]:
    """The environment in which a checkout is found, and programs are compiled as for readers."""
    paths = [str(_EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
