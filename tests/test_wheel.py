"""Installs the wheel into an empty environment and does in an empty folder what the README's first screen says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import README, ROOT, blocks, commands, text_of

# What turns runs of minutes and hours into seconds; the rest of a command is as in the README.
_TINY = [
    *("--config.teacher.epochs=2", "--config.distill.epochs=1", "--config.distill.rounds_per_epoch=1"),
    *("--config.distill.batch_size=16", "--config.generator.width=8", "--config.evaluation.synthetic_images=32"),
]


@pytest.fixture(scope="module", name="environment")
def _environment(tmp_path_factory) -> Path:
    """The `bin` of an environment with nothing but the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    _do([*pip, "wheel", "--no-deps", "--wheel-dir", folder / "dist", ROOT], folder)
    (wheel,) = (folder / "dist").glob("cudfkd_jax-*.whl")
    _do([sys.executable, "-m", "venv", folder / "env"], folder)
    _do([folder / "env/bin/python", *pip[1:], "install", wheel], folder)
    return folder / "env/bin"


def _do(command, folder: Path, path: Path | None = None) -> str:
    """Runs a command outside the checkout and returns its output; `path` is searched for programs first."""
    left_out = ("PYTHONPATH", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    if path:
        variables["PATH"] = os.pathsep.join([str(path), variables["PATH"]])
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _first_screen() -> list[str]:
    """Returns the commands above the table of use cases, which users give after the installation."""
    shown = text_of(README).partition("\n## Does it fit my case?")[0]
    found = [command for command in commands(README) if command.split("  ")[0] in shown.replace("\\\n", "")]
    return [command for command in found if command.startswith("cudfkd ")]


@pytest.mark.slow
def test_first_screen_of_the_readme_works_from_the_wheel(environment, tmp_path):
    first = _first_screen()
    assert len(first) >= 4 and "pip install ." in commands(README)
    for command in first:
        words = shlex.split(command)
        for weights in re.findall(r"--config\.teacher\.checkpoint=(\S+)", command):  # the reader's own file
            (tmp_path / weights).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / weights, tmp_path / weights)
        output = _do([*words, *(_TINY if "--config" in command else [])], tmp_path, environment)
        assert output
    assert (tmp_path / "runs/digits/report.html").exists()
    assert list((tmp_path / "runs/digits/export").glob("*/student.*"))
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 2

    (program,) = blocks(README, "python")
    (tmp_path / "program.py").write_text(program.replace('("digits")', '("digits:runlocal")'), encoding="utf-8")
    assert _do(["python", "program.py"], tmp_path, environment).splitlines()[-1].startswith("Result(wrn16_1, ")
    assert (tmp_path / "student/net.json").exists()


@pytest.mark.slow
def test_installed_command_knows_its_configurations(environment, tmp_path):
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    listed = _do(["cudfkd", "configs"], tmp_path, environment)
    assert {line.split()[0] for line in listed.splitlines()} == names
    assert _do(["cudfkd", "--version"], tmp_path, environment).startswith("cudfkd_jax ")
