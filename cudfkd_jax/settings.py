"""Configuration files: programs whose `get_config` changes the defaults."""

import difflib
import runpy
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from cudfkd_jax import build, defaults
from cudfkd_jax.errors import UserError


def load(file: str | None) -> ConfigDict:
    """The configuration of a file, such as "configs/digits.py:student=wrn10_1", over the defaults.

    Raises:
        UserError: the file is not there, fails, or names settings that do not exist.
    """
    if not file:
        raise UserError("no configuration; give one, e.g. --config=configs/digits.py (--help says more)")
    path, *arguments = file.split(":", 1)
    if not Path(path).is_file():
        raise UserError(f"no configuration file {path!r}; those of this project are in configs/")
    config = defaults.get_config().lock()
    try:
        loaded = runpy.run_path(path)["get_config"](*arguments)
        if not isinstance(loaded, ConfigDict):
            raise TypeError(f"get_config() returned {type(loaded).__name__}, not ConfigDict")
        check_keys(build.flatten(loaded), config)
        config.update(loaded)
    except UserError:
        raise
    except Exception as error:  # the file is a program and can raise anything
        raise UserError(
            f"--config={path} cannot be loaded: {type(error).__name__}: {error}; mend the file "
            "(--debug shows where it fails)"
        ) from error
    return config


def check_keys(keys: Iterable[str], config: ConfigDict) -> None:
    """Refuses dotted keys that the configuration does not have; the nearest ones are named."""
    known = build.flatten(config)
    for key in keys:
        if key not in known:
            nearest = ", ".join(difflib.get_close_matches(key, known, n=3, cutoff=0))
            raise UserError(
                f"unknown configuration key {key!r}; the nearest are {nearest} (all: {defaults.__file__})"
            )
