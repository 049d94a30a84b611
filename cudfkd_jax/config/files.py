"""The package's configuration files, found by name from any folder."""

import ast
from pathlib import Path

from cudfkd_jax.runtime.errors import UserError, unknown

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
    path = Path(given)
    if path.is_file():
        return path
    if given in names():
        return FOLDER / f"{given}.py"
    near = unknown("configuration", path.stem, names())
    raise UserError(f"no configuration file {given!r}: {near}, or a file of your own")


def listing() -> str:
    """Returns one line per configuration: its name and what it is, from the file's docstring."""
    width = max(map(len, names()))
    return "\n".join(f"{name:{width}}  {_summary(FOLDER / f'{name}.py')}" for name in names())


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")
