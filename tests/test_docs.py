"""Checks README.md and the pages of docs/ alike: commands work, and everything named or linked exists.

Commands are parsed and their configurations checked; whole runs belong to the end-to-end tests.
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torchvision_import
from pages import PAGES, README, ROOT, anchors, blocks, codes, commands, dotted_names, links, text_of

import docs_home
import document_settings
from cudfkd_jax import main, report
from cudfkd_jax.config import access, defaults, files, loading, validate
from cudfkd_jax.experiments import compare, sweep
from cudfkd_jax.experiments.paper_numbers import PAIRS, scores
from cudfkd_jax.experiments.reproduce import catalogue
from cudfkd_jax.experiments.reproduce.jobs import prepare
from cudfkd_jax.methods import METHODS
from cudfkd_jax.runs import evaluate, export, stages
from cudfkd_jax.runtime import cli

_SETTINGS = access.flatten(defaults.get_config())
_MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
_TARGETS = re.findall(r"^([a-z-]+):.*## ", _MAKEFILE, re.MULTILINE)
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
_OWN = {page.stem: page for page in PAGES}
_COMMANDS = {command: page for page in reversed(PAGES) for command in commands(page)}
_NAMES = [pytest.param(page, id=page.name) for page in PAGES]


def test_shows_the_necessary_commands():
    assert {"make demo", "make test", "pip install .", "cudfkd configs"} <= _COMMANDS.keys()
    assert {"pip install .", "cudfkd --config=digits --config.compute_dtype=auto --workdir=runs/digits"} <= set(
        commands(README)
    )
    for start in ("cudfkd --config=digits", "cudfkd --config=cifar10:teacher=", "cudfkd --stage=evaluate"):
        assert any(command.startswith(start) for command in _COMMANDS)


@pytest.mark.parametrize("command", _COMMANDS)
def test_command_is_understood(command, monkeypatch, tmp_path):
    (tmp_path / "my_nets.py").write_text(blocks(_OWN["own_network"], "python")[0], encoding="utf-8")
    (tmp_path / "my_torch_nets.py").write_text(blocks(_OWN["own_pytorch"], "python")[0], encoding="utf-8")
    if "module=torch:" in command:
        pytest.importorskip("torch_nets")
        torchvision_import.import_or_skip()
    (nnx_nets,) = [block for block in blocks(_OWN["own_network"], "python") if "nnx.Module" in block]
    (tmp_path / "my_nnx_nets.py").write_text(nnx_nets, encoding="utf-8")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/boundary.py").write_text(blocks(_OWN["own_method"], "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    try:
        _check(shlex.split(command), monkeypatch)
    finally:
        names = ("my_package.boundary", "my_package", "my_nets", "my_torch_nets", "my_nnx_nets")
        for name in names:
            sys.modules.pop(name, None)


def _check(words, monkeypatch):
    while re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
        words = words[1:]
    match words:
        case ["srun", *_]:
            _check(words[words.index("cudfkd") :], monkeypatch)
        case ["cudfkd", "configs"]:
            assert files.names()
        case ["cudfkd", "compare", *options]:
            _check_compare(options, monkeypatch)
        case ["cudfkd", "sweep", *options]:
            _check_sweep(options)
        case ["cudfkd", "reproduce", *options]:
            _check_reproduce(options)
        case ["cudfkd", *options]:
            _check_main(options, monkeypatch)
        case ["make", *given]:
            assert {word for word in given if "=" not in word} <= set(_TARGETS)
            names = [word.partition("=")[0] for word in given if "=" in word]
            assert all(re.search(rf"^{name} \?=", _MAKEFILE, re.MULTILINE) for name in names)
        case ["pip", "install", what] if what != "tensorboard":
            _check_install(what)
        case ["python", script, *options] if script.startswith("scripts/"):
            _check_script(ROOT / script, options, monkeypatch)
        case [".venv/bin/python", "-m", "pip", "install", "pip-audit", *_] | ["pip", "install", "tensorboard"]:
            pass
        case ["tensorboard", "--logdir=runs/digits"]:
            pass
        case _:
            raise AssertionError("this test does not know the command")


def _check_install(what):
    name, _, extra = what.rstrip("]").partition("[")
    assert name in (".", "cudfkd_jax") and (not extra or extra in _EXTRAS)


def _check_script(script, options, monkeypatch):
    """Checks that a script knows its options, and the configuration that it is given."""
    source = script.read_text(encoding="utf-8")
    known = [option for option in options if option.startswith("--") and not option.startswith("--config.")]
    assert all(option.partition("=")[0] in source for option in known)
    if any(option.startswith("--config=") for option in options):
        _check_main([option for option in options if option.startswith("--config")], monkeypatch)


def _check_compare(words, monkeypatch):
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    assert given.keys() == {"config", "methods", "seeds", "workdir"}
    assert compare.parse_methods(given["methods"]) and cli.parse_seeds(given["seeds"])
    _check_main([f"--config={given['config']}"], monkeypatch)


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
    overrides = [word for word in words if word.startswith("--config.")]
    flags = [word for word in words if word.startswith("--") and word not in overrides]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in flags)
    assert options.keys() <= {"list", "scale", "workdir", "dry-run", "method"}
    if "list" in options:
        assert words == ["--list"] and catalogue.listing()
        return
    scale = options.get("scale", "digits")
    entries = catalogue.select(names, scale)
    here = [override for override in overrides if "teacher.checkpoint" not in override]  # a file of the reader's
    jobs = prepare(entries, scale, Path("nowhere"), files.FOLDER, here)
    assert names == ["all"] or {job.entry.name for job in jobs} == set(names)


def _check_main(arguments, monkeypatch):
    """Makes the command line parse the arguments and stop before the run."""
    begun = []
    monkeypatch.setattr(loading, "read_config", lambda folder: defaults.get_config())
    monkeypatch.setattr(evaluate, "evaluate_run", lambda config, folder: begun.append(config))
    monkeypatch.setattr(evaluate, "evaluate_teacher", begun.append)
    monkeypatch.setattr(stages, "run", lambda config, stage, folder: begun.append(config))
    monkeypatch.setattr(report, "write_report", lambda folder: begun.append(defaults.get_config()))
    monkeypatch.setattr(report, "write_comparison", lambda runs, folder: begun.append(defaults.get_config()))
    monkeypatch.setattr(export, "export", lambda folder, format_: begun.append(defaults.get_config()))
    assert main.main(arguments) == 0
    (config,) = begun
    validate.check(config)


def _exists(name: str) -> bool:
    """Returns whether a dotted name is a setting, or a module or a member of one, here or in a library."""
    if name in _SETTINGS or name.split(".")[0] == "boundary":  # the section of docs/own_method.md
        return True
    for full in (f"cudfkd_jax.{name}", f"flax.{name}", name):
        module, _, attribute = full.rpartition(".")
        try:
            if hasattr(importlib.import_module(module), attribute):
                return True
            importlib.import_module(full)
        except ImportError:
            continue
        return True
    return False


@pytest.mark.parametrize("page", _NAMES)
def test_functions_and_settings_exist(page):
    names = dotted_names(page)
    assert len(names) > (10 if page.stem == "paper_to_code" else -1)
    assert not [name for name in names if not _exists(name)]


def test_settings_on_the_command_line_exist():
    flags = [code for page in PAGES for code in codes(page) if code.startswith("--config.")]
    keys = {re.split("[= ]", flag.removeprefix("--config."))[0] for flag in flags} - {"KEY"}
    assert {"devices", "compute_dtype", "distill.budget", "memory.capacity"} <= keys | set(
        dotted_names(_OWN["methods"])
    )
    assert keys <= _SETTINGS.keys()


@pytest.mark.parametrize("page", _NAMES)
def test_named_and_linked_files_exist(page):
    folders = r"(cudfkd_jax|configs|docs|examples|results|scripts|tests)/[\w/.]*$"
    named = {code for code in codes(page) if re.match(folders, code)}
    named |= {code for code in codes(page) if code in ("LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml")}
    assert not [name for name in named if not (ROOT / name).exists()]
    for file, anchor in links(page):
        target = (page.parent / file) if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_every_page_is_in_the_navigation_and_in_the_readme():
    pages = [page.name for page in PAGES if page != README]
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page for page in pages if f"{page}\n" not in navigation]
    linked = {file for file, _ in links(README)}
    assert not [page for page in pages if f"docs/{page}" not in linked]


def test_table_of_settings_is_that_of_the_defaults():
    page = document_settings.PAGE.read_text(encoding="utf-8")
    assert page == document_settings.page(page), "run python scripts/document_settings.py"


def test_every_setting_is_in_the_table_with_a_meaning():
    meanings = document_settings.meanings()
    assert not [key for key in _SETTINGS if not meanings[key]]
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| .+ \|$", document_settings.tables(), re.MULTILINE)
    assert sorted(rows) == sorted(_SETTINGS)


def test_every_argument_after_the_colon_is_explained():
    rows = "".join(re.findall(r"^\| (`.*?) \|", text_of(_OWN["configuration"]), re.MULTILINE))
    assert all(f"`{name}`" in rows or f"`{name}=`" in rows for name in loading.presets.ARGUMENTS)
    assert all(f"`{name}`" in rows for name in files.names())


def test_every_method_has_a_line():
    text = text_of(_OWN["methods"])
    assert re.findall(r"^\| `(\w+)` \| (?:a |the )", text, re.MULTILINE) == list(METHODS)


def test_every_equation_has_a_line():
    text = text_of(_OWN["paper_to_code"])
    found = set()
    for first, last, others in re.findall(r"^\| Eq\. (\d+)(?:–(\d+))?((?:, \d+)*)", text, re.MULTILINE):
        found |= {*range(int(first), int(last or first) + 1), *map(int, re.findall(r"\d+", others))}
    assert found == set(range(1, 18))


def test_configurations_of_the_paper_give_the_named_networks_and_numbers():
    rows = re.findall(
        r"^\| `(\w+)(\S*)` \| (\w+) from (\w+) \| (.*) \|", text_of(_OWN["paper_results"]), re.MULTILINE
    )
    assert {(config, teacher, student) for config, _, student, teacher, _ in rows} >= {
        (config, *pair) for config in ("cifar10", "cifar100") for pair in PAIRS
    } | {("tiny_imagenet", *PAIRS[0])}
    for name, arguments, student, teacher, numbers in rows:
        config = loading.load(f"{name}{arguments}")
        validate.check(config)
        assert (config.student.arch, config.teacher.arch) == (student, teacher)
        if found := scores(name, teacher, student, "cudfkd"):
            of_teacher = scores(name, teacher, student, "teacher")
            shown = f"{found.acc1:.2f} / {found.agree1:.2f} / {found.loyalty:.4f} ({of_teacher.acc1:.2f})"
            assert numbers.startswith(shown)


def test_home_page_is_the_readme_with_links_of_the_site():
    home = docs_home.home(text_of(README))
    targets = re.findall(r"\]\(([^)#]*)", home)
    assert "images/strip.png" in targets
    assert not [target for target in targets if not (ROOT / "docs" / target).exists()]
    assert "`digits` (`results/digits/summary.json`)" in home
    assert docs_home.on_page_markdown("[The README](../README.md#results)") == "[The README](index.md#results)"


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    assert all(f'id="cudfkd_jax.{name}"' in page for name in ("runs.api.distill", "methods.base.MethodSpec"))


def test_example_configuration_is_accepted(tmp_path):
    (tmp_path / "flowers.py").write_text(blocks(_OWN["configuration"], "python")[0], encoding="utf-8")
    config = loading.load(f"{tmp_path}/flowers.py:teacher=vgg11")
    validate.check(config)
    assert (config.teacher.arch, config.data.num_classes, config.distill.epochs) == ("vgg11", 5, 100)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_target_of_make_is_explained():
    named = re.findall(r"`make ([a-z-]+)", text_of(_OWN["running"]) + text_of(_OWN["performance"]))
    assert set(_TARGETS) - {"help"} <= set(named)
