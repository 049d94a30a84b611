"""Tests of the project's structure: imports, in addition to the layers of `make lint`, and files."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT / "cudfkd_jax"
_NAME = _PACKAGE.name

# The only modules that may import or name each of these.
_KNOWS_DEVICES = {"runtime.devices"}
_UNPICKLES = {"data.pickles"}
_KNOWS_TORCH = {"storage.torch_files", "models.torch_calls"}
_MATHEMATICS = ("methods", "objectives", "models")


def _module_name(path: Path) -> str:
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_FILES = {_module_name(path): path for path in sorted(_PACKAGE.rglob("*.py")) if path != _PACKAGE / "__init__.py"}


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(_FILES[name].read_text(encoding="utf-8"))


@cache
def _imports(name: str) -> frozenset[str]:
    """Returns the dotted names that a module imports anywhere; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import; write cudfkd_jax.…"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def _imported_modules(name: str) -> frozenset[str]:
    """Returns the package's modules that a module imports; a folder only if a member of it is imported."""
    own = {found.removeprefix(f"{_NAME}.") for found in _imports(name)} & _FILES.keys()
    return frozenset(module for module in own if not any(other.startswith(f"{module}.") for other in own))


def _entry(name: str) -> str:
    return name.split(".")[0]


def test_methods_and_models_know_nothing_of_configuration_data_disk_or_devices():
    foreign = {"absl", "io", "json", "ml_collections", "orbax", "os", "pathlib", "shutil", "sys"}
    allowed = {"data.augment", "runtime.devices", "runtime.errors", "runtime.imports", "runtime.onednn"}
    faults = {}
    for name in (name for name in _FILES if _entry(name) in _MATHEMATICS):
        roots = {found.split(".")[0] for found in _imports(name)}
        others = {other for other in _imported_modules(name) if _entry(other) not in _MATHEMATICS}
        faults[name] = roots & foreign | others - allowed | _names(name) & {"Devices"}
    assert not {name: found for name, found in faults.items() if found}


def test_only_one_module_names_a_mapping_or_a_collective():
    words = {"pmap", "shard_map", "pmean", "psum", "all_gather", "axis_index", "Mesh", "NamedSharding"}
    assert {name for name in _FILES if words & _names(name)} == _KNOWS_DEVICES


def test_only_these_modules_know_of_several_processes_what_jax_knows():
    words = {"process_index", "process_count", "distributed", "multihost_utils", "local_device_count"}
    users = {name for name in _FILES if words & _names(name)}
    users -= {"config.build", "config.defaults", "config.validate"}  # `config.distributed`
    assert users == {"runtime.devices", "runtime.processes"}


def test_only_the_restricted_reader_unpickles():
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    users = {name for name in _FILES if {found.split(".")[0] for found in _imports(name)} & modules}
    assert users == _UNPICKLES
    for name in _FILES:
        for node in ast.walk(_tree(name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
                assert node.attr in ("Unpickler", "UnpicklingError"), f"{name} uses pickle.{node.attr}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, name
    readers = [
        node
        for node in ast.walk(_tree("data.pickles"))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "pickle.Unpickler" for base in node.bases)
    ]
    assert readers
    for reader in readers:
        assert "find_class" in {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}


def test_no_module_imports_tensorflow_and_only_one_torch():
    for name in _FILES:
        roots = {found.split(".")[0] for found in _imports(name)}
        assert not roots & {"tensorflow", "torchvision"}, name
        assert name in _KNOWS_TORCH or not roots & {"torch", "safetensors"}, name


def test_everything_imports_where_tensorflow_and_torch_cannot():
    modules = [f"{_NAME}.{name}" for name in _FILES if name not in ("main", "__main__")]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['tensorflow', 'torch', 'torchvision', 'flatbuffers']))\n"
        f"for name in [*{modules!r}, 'tensorflow_datasets']: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_are_in_their_usual_places():
    paths = (
        *("Makefile", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".pre-commit-config.yaml"),
        *(".ci/run", "cudfkd_jax/main.py", "configs/digits.py", "scripts/benchmark.py", "tests"),
    )
    assert not [path for path in paths if not (_ROOT / path).exists()]


def test_licence_is_the_one_that_is_declared():
    text = (_ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_configurations_are_read_by_the_package_alone():
    """Checks that configuration files only change defaults and contain no code that a run needs."""
    for path in (_ROOT / "configs").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert modules <= {_NAME, "ml_collections"}, path


def _names(name: str) -> set[str]:
    """Returns the identifiers in a module's code, without its strings."""
    nodes = list(ast.walk(_tree(name)))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }
