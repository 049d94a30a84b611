"""Checks that reading files cannot run code, and that every dependency is used."""

import ast
import importlib.metadata
import json
import pickle
import re
import sys
import tomllib
from pathlib import Path

import pytest
import tiny

from cudfkd_jax import main
from cudfkd_jax.runs import stages
from cudfkd_jax.storage import checkpoint

_ROOT = Path(__file__).parents[1]
_SOURCES = [
    path for folder in ("cudfkd_jax", "scripts", "configs") for path in sorted((_ROOT / folder).rglob("*.py"))
]
# Modules that turn bytes into arbitrary objects, and the modules that may import them.
_UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
_MAY_UNPICKLE = {"cudfkd_jax/data/pickles.py"}  # with a restricted reader: test_project.py
_MAY_PICKLE = {"scripts/fuzzing/readers.py"}  # writes files that must be refused
_MAY_RUN_FILES = {"cudfkd_jax/config/loading.py"}  # a configuration is the user's own program
_MAY_EVALUATE = {"scripts/parity/released.py"}  # runs the releases, which are programs


def _name(path):
    return path.relative_to(_ROOT).as_posix()


def _imported(tree):
    """Returns the top-level names of all imports, and the imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def _faults(name, text):
    """Returns the calls in a source file that could execute its input."""
    tree, found = ast.parse(text), []
    if (imported := set(_imported(tree)) & _UNPICKLERS) and name not in _MAY_UNPICKLE | _MAY_PICKLE:
        found.append(f"imports {imported}")
    if "runpy" in set(_imported(tree)) and name not in _MAY_RUN_FILES:
        found.append("imports runpy")
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, given = (
            ast.unparse(call.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords},
        )
        if called in ("exec", "os.system", "os.popen") or given.get("shell", "False") != "False":
            found.append(ast.unparse(call))
        if called == "eval" and name not in _MAY_EVALUATE:
            found.append(ast.unparse(call))
        if name in _MAY_PICKLE and re.fullmatch(r"pickle\.(load|loads|Unpickler)", called):
            found.append(ast.unparse(call))
        if called.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(ast.unparse(call))
        if (
            re.fullmatch(r"(np|numpy)\.(load|lib\.format\.read_array)", called)
            and given.get("allow_pickle") != "False"
        ):
            found.append(ast.unparse(call))
        if given.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(call))
    return found


def test_no_source_runs_what_it_reads():
    found = {_name(path): _faults(_name(path), path.read_text(encoding="utf-8")) for path in _SOURCES}
    assert len(found) > 100 and not [item for item in found.items() if item[1]]


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from joblib import load", "import yaml", "def f():\n  import marshal", "import runpy"),
        *("eval(x)", "exec(open(p).read())", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)"),
        *("np.load(p, allow_pickle=True)", "subprocess.run(x, shell=True)", "read_array(f, allow_pickle=True)"),
    ],
)
def test_code_that_would_is_found(text):
    assert _faults("cudfkd_jax/new.py", text)


class _Payload:
    """Creates a folder when unpickled."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return Path.mkdir, (self._mark,)


_RESUME = (f"--config={tiny.__file__}",)


@pytest.mark.parametrize(
    ("files", "arguments"),
    [
        ("config.json", _RESUME),
        ("config.json", ("--stage=evaluate",)),
        ("summary.json", _RESUME),
        ("metrics.jsonl", _RESUME),
        ("checkpoints/*/*", _RESUME),
        ("checkpoints/*/*/*", _RESUME),
        ("checkpoints/*.json", _RESUME),
        ("teacher/net/*", _RESUME),
        ("teacher/summary.json", (*_RESUME, "--stage=teacher")),
        ("student/net.json", ("--stage=export", "--format=orbax")),
        ("student/weights.msgpack", ("--stage=export", "--format=orbax")),
        ("student/weights.msgpack", ("--stage=evaluate",)),
    ],
)
def test_a_pickle_in_a_runs_folder_is_refused_and_not_loaded(
    run_copy, tmp_path, monkeypatch, capsys, files, arguments
):
    for part in (stages.distill, stages.supervised):
        monkeypatch.setattr(part, "check_shapes", lambda *_: None)  # takes seconds
    mark = tmp_path / "the code ran"
    content = pickle.dumps(_Payload(mark))
    pickle.loads(content)
    mark.rmdir()  # it runs if permitted
    if arguments == _RESUME and files != "summary.json":
        (run_copy / "summary.json").unlink()
    replaced = [path for path in run_copy.glob(files) if path.is_file()]
    assert replaced
    for path in replaced:
        path.write_bytes(content)
    if files.startswith("checkpoints/*/"):  # the manifests match, like an attacker's
        for held in checkpoint.checkpoints(run_copy / "checkpoints"):
            manifest = held.with_name(held.name + ".sha256.json")
            manifest.write_text(json.dumps(checkpoint.digests(held)))
    assert main.main([*arguments, f"--workdir={run_copy}"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "cudfkd: " in line]
    assert len(said) == 1 and said[0].startswith("cudfkd: error: ")
    assert not mark.exists()


# Dependencies

_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# TFDS imports the first and does not declare it; the second is there for its file of digits.
_NOT_IMPORTED_HERE = {"importlib-resources", "scikit-learn"}


def _distributions(requirements):
    return {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in requirements}


def _used(folder):
    """Returns the distributions that the sources of a folder import."""
    paths = (path for path in _SOURCES if _name(path).startswith(f"{folder}/"))
    names = {name for path in paths for name in _imported(ast.parse(path.read_text(encoding="utf-8")))}
    names -= {*sys.stdlib_module_names, "cudfkd_jax"}
    known = importlib.metadata.packages_distributions()
    return {name: {found.lower().replace("_", "-") for found in known.get(name, [name])} for name in names}


def test_every_base_dependency_is_imported_and_every_import_is_declared():
    base = _distributions(_PROJECT["dependencies"])
    groups = _PROJECT["optional-dependencies"]
    extras = set().union(*(_distributions(groups[name]) for name in groups if name != "dev"))
    used = _used("cudfkd_jax")
    assert base - set().union(*used.values()) == _NOT_IMPORTED_HERE
    assert not [name for name, distributions in used.items() if not distributions & (base | extras)]
