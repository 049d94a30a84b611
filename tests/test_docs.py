"""Checks that everything named in the documents exists."""

import importlib
import re
from pathlib import Path

import pytest

from cudfkd_jax.config import access, defaults
from cudfkd_jax.methods import METHODS

_ROOT = Path(__file__).parents[1]
_DOCS = sorted((_ROOT / "docs").glob("*.md"))
_SETTINGS = access.flatten(defaults.get_config())


def _exists(name: str) -> bool:
    """Returns whether a dotted name is a module of the package or a member of one."""
    module, _, attribute = f"cudfkd_jax.{name}".rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


@pytest.mark.parametrize("path", _DOCS, ids=lambda path: path.name)
def test_functions_settings_and_files_exist(path):
    codes = re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))
    dotted = {code.partition("=")[0] for code in codes if re.fullmatch(r"[a-z_]+(\.\w+)+(=\S+)?", code)}
    missing = [name for name in dotted if name not in _SETTINGS and not _exists(name)]
    files = [code for code in codes if re.match(r"(cudfkd_jax|configs|scripts|tests|results|docs)/[\w/.]+$", code)]
    assert len(dotted) > (10 if path.stem == "paper_to_code" else 0) and not missing
    assert not [name for name in files if not (_ROOT / name).exists()]


def test_every_method_has_a_line():
    text = (_ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (?:a |the )", text, re.MULTILINE) == list(METHODS)


def test_every_equation_has_a_line():
    text = (_ROOT / "docs/paper_to_code.md").read_text(encoding="utf-8")
    found = set()
    for first, last, others in re.findall(r"^\| Eq\. (\d+)(?:–(\d+))?((?:, \d+)*)", text, re.MULTILINE):
        found |= {*range(int(first), int(last or first) + 1), *map(int, re.findall(r"\d+", others))}
    assert found == set(range(1, 18))
