"""Writes the table of all settings in docs/configuration.md, from the defaults and the comments beside them.

    python scripts/document_settings.py

The table follows the marker in the page; the text before it is written by hand. A test fails where the page and
the defaults differ.
"""

import ast
import dataclasses
import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from cudfkd_jax.config import access, defaults
from cudfkd_jax.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
MARKER = "<!-- Written by scripts/document_settings.py from cudfkd_jax/config/defaults.py. -->"
_TRAINED_ON_DATA = ("teacher", "scratch", "kd")


def page(text: str) -> str:
    """Returns the page with its table written anew."""
    return f"{text.partition(MARKER)[0]}{MARKER}\n\n{tables()}"


def tables() -> str:
    """Returns one table per section of the configuration, with each setting's key, default and meaning."""
    comments = meanings()
    places = {name: place for place, name in enumerate(comments)}
    values = access.flatten(defaults.get_config())
    sections: dict[str, list[str]] = {}
    for key in sorted(values, key=lambda key: (places.get(key.rpartition(".")[0], -1), places[key])):
        row = f"| `{key}` | `{_shown(values[key])}` | {_cell(comments[key])} |"
        sections.setdefault(key.rpartition(".")[0], []).append(row)
    return "\n".join(_table(name, comments.get(name, ""), rows) for name, rows in sections.items())


def meanings() -> dict[str, str]:
    """Returns the comments on settings, by dotted key, and on sections, by name, in the order of the source."""
    source = inspect.getsource(defaults)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    comments = _comments(source)
    found: dict[str, str] = {}
    for node in ast.walk(functions["get_config"]):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute):  # `config.seed`, or a section's variable with the section's name
                found[ast.unparse(target).removeprefix("config.")] = comments.get(node.lineno, "")
    (training,) = (node for node in ast.walk(functions["_supervised"]) if isinstance(node, ast.Dict))
    for key in training.keys:
        assert isinstance(key, ast.Constant) and isinstance(key.value, str)
        found |= {f"{section}.{key.value}": comments.get(key.lineno, "") for section in _TRAINED_ON_DATA}
    for method in METHODS.values():
        if method.settings:
            found[method.name] = f"of {method.label} alone"
            found |= {f"{method.name}.{key}": text for key, text in _of_method(method.settings).items()}
    return found


def _of_method(settings: type) -> dict[str, str]:
    source = inspect.getsource(settings)
    (declaration,) = ast.parse(source).body
    assert isinstance(declaration, ast.ClassDef)
    comments, fields = _comments(source), {field.name: field for field in dataclasses.fields(settings)}
    found = {}
    for node in declaration.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = fields[node.target.id].metadata.get("valid", ())
            valid = " or ".join(f'"{name}"' for name in names)
            parts = (valid, comments.get(node.lineno, ""))
            found[node.target.id] = ": ".join(filter(None, parts))
    return found


def _comments(source: str) -> dict[int, str]:
    """Returns the comment that ends each line of code, or else the lines of comment just above it."""
    ends: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            whole_line = not token.line[: token.start[1]].strip()
            (above if whole_line else ends)[token.start[0]] = token.string.removeprefix("# ")
    found: dict[int, str] = {}
    for line, text in above.items():
        earlier = found.pop(line, "")
        found[line + 1] = f"{earlier} {text}".strip()
    return found | ends


def _table(name: str, meaning: str, rows: list[str]) -> str:
    title = f"`{name}`" if name else "The run"
    said = f"{_cell(meaning)}.\n\n" if meaning else ""
    return f"## {title}\n\n{said}| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _cell(text: str) -> str:
    """Returns a comment as a sentence without its full stop; symbols keep their case."""
    first = text.split(" ")[0].rstrip(",;:")
    if re.fullmatch("[a-z]{2,}", first) or first == "a":
        text = text[0].upper() + text[1:]
    return text.rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
