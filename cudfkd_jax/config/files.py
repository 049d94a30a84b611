"""The package's configuration files, found by name from any folder."""

import ast
import contextlib
import difflib
from pathlib import Path

from cudfkd_jax.runtime.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# Wheels carry them inside the package; in a checkout they lie beside it.
FOLDER = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (folder / "digits.py").is_file()),
    _PACKAGE / "configs",
)


def names() -> list[str]:
    """Returns the names of the package's configurations, such as "digits"."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find(given: str) -> Path:
    """Returns the configuration file for a path, or for a name of `names`.

    Raises:
        UserError: there is no such file.
    """
    path, hint = Path(given), ""
    if path.is_file():
        return path
    if given in names():
        return FOLDER / f"{given}.py"
    with contextlib.suppress(OSError):
        files = {name: name for name in names()} | {file.stem: str(file) for file in path.parent.glob("*.py")}
        near = difflib.get_close_matches(path.stem, files, n=1)
        hint = f" (did you mean {files[near[0]]!r}?)" if near else ""
    raise UserError(f"no configuration file {given!r}{hint}; valid: {', '.join(names())}, or a file like theirs")


def listing() -> str:
    """Returns one line per configuration: its name and what it is, from the file's docstring."""
    width = max(map(len, names()))
    return "\n".join(f"{name:{width}}  {_summary(FOLDER / f'{name}.py')}" for name in names())


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")
