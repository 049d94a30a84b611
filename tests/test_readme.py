"""Checks that the README's commands work and that everything it names exists.

Commands are parsed and their configurations checked; whole runs belong to the end-to-end tests.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cudfkd_jax import main, models, report
from cudfkd_jax.config import access, build, defaults, loading, validate
from cudfkd_jax.evaluation import summary
from cudfkd_jax.experiments import compare, sweep
from cudfkd_jax.experiments.reproduce import catalogue
from cudfkd_jax.experiments.reproduce.jobs import prepare
from cudfkd_jax.methods import METHODS
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import evaluate, export, stages
from cudfkd_jax.runtime import cli
from cudfkd_jax.storage import formats, weights

_ROOT = Path(__file__).parents[1]
_TEXT = (_ROOT / "README.md").read_text(encoding="utf-8")
_MAKEFILE = (_ROOT / "Makefile").read_text(encoding="utf-8")
_TARGETS = dict(re.findall(r"^([a-z-]+):.*## (.+)$", _MAKEFILE, re.MULTILINE))


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)


_COMMANDS = [line for block in _blocks("sh") for line in block.splitlines()]
_CODE = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```$", "", _TEXT, flags=re.MULTILINE | re.DOTALL))


def _of_main(command: str) -> list[str] | None:
    words = shlex.split(command)
    if words[0] == "srun":
        words = words[words.index("python") :]
    return words[3:] if words[:3] == ["python", "-m", "cudfkd_jax.main"] else None


def test_shows_the_necessary_commands():
    assert {"make demo", "make test"} <= set(_COMMANDS)
    for start in ("--config=configs/digits.py", "--config=configs/cifar10.py:teacher=", "--stage=evaluate"):
        assert any(start in command for command in _COMMANDS if _of_main(command))


@pytest.mark.parametrize("command", _COMMANDS)
def test_command_is_understood(command, monkeypatch, tmp_path):
    (tmp_path / "my_nets.py").write_text(_blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(_ROOT)
    words = shlex.split(command)
    arguments = _of_main(command)
    if arguments is not None:
        _check_main(arguments, monkeypatch)
    elif words[0] == "make":
        given = [word.partition("=")[0] for word in words[1:] if "=" in word]
        assert {word for word in words[1:] if "=" not in word} <= _TARGETS.keys()
        assert all(re.search(rf"^{name} \?=", _MAKEFILE, re.MULTILINE) for name in given)
    elif words[:2] == ["python", "scripts/compare.py"]:
        given = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
        assert given.keys() == {"config", "methods", "seeds", "workdir"}
        assert compare.parse_methods(given["methods"]) and cli.parse_seeds(given["seeds"])
        _check_main([f"--config={given['config']}"], monkeypatch)
    elif words[:2] == ["python", "scripts/sweep.py"]:
        _check_sweep(words[2:])
    elif words[:2] == ["python", "scripts/reproduce.py"]:
        _check_reproduce(words[2:])
    else:
        assert words[:2] == ["python", "scripts/benchmark.py"], "this test does not know the command"
        assert words[2].startswith("--config=configs/")
        assert all(
            re.match(r"--(rounds=\d+|devices=[\d,]+|peer=torch|json|config\..+)$", word) for word in words[3:]
        )
        _check_main([word for word in words[2:] if word.startswith("--config")], monkeypatch)


def _check_sweep(words):
    """Plans the runs of a sweep without starting any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", required=True)
    parser.add_argument("--seeds", default="0")
    given, overrides = parser.parse_known_args(words)
    axes = [sweep.parse_axis(text) for text in given.set]
    folder = sweep.default_workdir(given.config, axes, overrides)
    assert len(sweep.check(given.config, axes, cli.parse_seeds(given.seeds), folder, overrides)) > 1


def _check_reproduce(words):
    """Plans the runs of some entries without starting any."""
    names = [word for word in words if not word.startswith("--")]
    options = dict(
        word.removeprefix("--").partition("=")[::2] for word in words if not word.startswith("--config.")
    )
    overrides = [word for word in words if word.startswith("--config.")]
    if "list" in options:
        assert words == ["--list"] and catalogue.listing()
        return
    entries = catalogue.select(names, options["scale"])
    jobs = prepare(entries, options["scale"], Path("nowhere"), Path("configs"), overrides)
    assert [job.entry.name for job in jobs] == names


def _check_main(arguments, monkeypatch):
    """Makes the command line parse the arguments and stop before the run."""
    begun = []
    monkeypatch.setattr(loading, "read_config", lambda folder: defaults.get_config())
    monkeypatch.setattr(evaluate, "evaluate_run", lambda config, folder: begun.append(config))
    monkeypatch.setattr(stages, "run", lambda config, stage, folder: begun.append(config))
    monkeypatch.setattr(report, "write_report", lambda folder: begun.append(defaults.get_config()))
    monkeypatch.setattr(report, "write_comparison", lambda runs, folder: begun.append(defaults.get_config()))
    monkeypatch.setattr(export, "export", lambda folder, format_: begun.append(defaults.get_config()))
    assert main.main(arguments) == 0
    (config,) = begun
    validate.check(config)


def test_configurations_in_the_table_are_valid_and_give_the_named_networks(monkeypatch):
    monkeypatch.chdir(_ROOT)
    rows = re.findall(r"^\| `(configs/\S+)` \| (\w+) from (\w+) \|", _TEXT, re.MULTILINE)
    assert {row[0].split(":")[0] for row in rows} == {
        f"configs/{path.name}" for path in Path("configs").glob("*.py")
    }
    for argument, student, teacher in rows:
        begun = []
        monkeypatch.setattr(stages, "run", lambda config, stage, folder, begun=begun: begun.append(config))
        assert main.main([f"--config={argument}"]) == 0
        (config,) = begun
        validate.check(config)
        assert (config.student.arch, config.teacher.arch) == (student, teacher)


def test_every_stage_is_in_the_table():
    assert set(re.findall(r"^\| `(\w+)` \| ", _TEXT, re.MULTILINE)) >= set(stages.STAGES)


def test_every_data_source_and_method_is_in_a_table():
    known = build.data.SOURCES
    assert set(re.findall(r"^\| `(\w+)` \| ", _TEXT, re.MULTILINE)) == {
        *known,
        access.NO_DATA,
        *stages.STAGES,
        *formats.FORMATS,
        *METHODS,
    }


def test_named_files_are_there():
    named = {
        code.split(":")[0] for code in _CODE if re.match(r"(configs|cudfkd_jax|docs|results|scripts|tests)/", code)
    }
    named |= {code for code in _CODE if code in ("LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml")}
    named |= set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", _TEXT))
    assert len(named) > 20
    assert not [name for name in named if not (_ROOT / name).exists()]


def test_named_settings_exist():
    sections = defaults.get_config()
    known = access.flatten(sections)
    dotted = (code.removeprefix("--config.").partition("=")[0] for code in _CODE if "." in code)
    keys = {key for key in dotted if key.split(".")[0] in sections and re.fullmatch(r"\w+(\.\w+)?", key)}
    keys |= {code.removeprefix("--config.").partition("=")[0] for code in _CODE if code.startswith("--config.")}
    keys -= {"KEY", *(f"student.{suffix}" for suffix in ("json", "pth", "safetensors", "stablehlo"))}
    assert {"data.source", "data.dir", "distill.batch_size", "devices"} <= keys
    assert keys <= known.keys()


def test_table_matches_the_committed_run():
    run = json.loads((_ROOT / "results" / "digits" / "summary.json").read_text(encoding="utf-8"))
    assert summary.describe(run) + "\n" in _blocks("text")
    student, teacher = run["student"], run["teacher"]
    assert (
        f"| {student['acc1_last']:.2f} / {student['agree1']:.2f} / {student['loyalty_released']:.4f} "
        f"({teacher['acc1']:.2f}), last epoch |"
    ) in _TEXT


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_without_a_target_lists_all_of_them():
    expected = (
        "install",
        "demo",
        "test",
        "test-all",
        "lint",
        "bench",
        "parity",
        "gpu",
        "gpu-carried",
        "gpu-dry-run",
        "clean",
    )
    assert ("help", *expected) == tuple(_TARGETS)
    done = subprocess.run(["make", "--no-print-directory"], cwd=_ROOT, capture_output=True, text=True, check=True)
    listed = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("  make ")]
    assert [(name, text) for _, name, text in listed] == list(_TARGETS.items())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_is_the_first_line_for_users():
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "demo"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, last = done.stdout.strip().splitlines()
    assert last.split(maxsplit=1)[1] in {command.removeprefix("python ") for command in _COMMANDS}


def test_program_gives_logits_of_a_saved_student(tmp_path, monkeypatch):
    *_, program = _blocks("python")
    net = weights.NetworkSpec("wrn10_1", 10, (16, 16, 1), (0.5,), (0.5,), {})
    module = Classifier(models.build_classifier(net.arch, net.num_classes), net.mean, net.std)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), net.image_shape))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    weights.save_net(tmp_path / "runs/digits/student", net, variables)
    monkeypatch.chdir(tmp_path)
    scope = {"images": np.zeros((2, 16, 16, 1), np.float32)}
    exec(program, scope)
    assert scope["logits"].shape == (2, 10)


@pytest.mark.long
def test_a_user_network_is_trained_and_distilled_from_python(tmp_path, monkeypatch, capsys):
    """Runs the two programs and the command of "Use your own teacher" on a smaller configuration."""
    module, program, _ = _blocks("python")
    (command,) = (command for command in _COMMANDS if "my_nets:Teacher" in command)
    (tmp_path / "configs").mkdir()
    shutil.copy(_ROOT / "tests/support/tiny.py", tmp_path / "configs/digits.py")
    (tmp_path / "my_nets.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main.main([*_of_main(command), "--stage=teacher"]) == 0
    exec(program.replace("(16, 16, 1)", "(8, 8, 1)"), scope := {})
    result = scope["result"]
    assert 0 <= result.metrics["agree1_synthetic"] <= 100 and f"{result.metrics}\n" in capsys.readouterr().out
    assert result.student.variables.keys() == {"params", "batch_stats"}


def test_installed_command_shows_the_same_help():
    command = Path(sys.executable).with_name("cudfkd")
    if not command.exists():
        pytest.skip("the package is not installed for this Python")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: cudfkd ")
