"""Loading of configurations: files (programs whose `get_config` changes the defaults), settings and overrides."""

import difflib
import functools
import hashlib
import json
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cudfkd_jax.config import access, defaults, files, from_folder, presets, validate
from cudfkd_jax.config.methods import add_section, use_method
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir
from cudfkd_jax.storage.files import read_object

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple", str: "a text"}


def load(file: str | None) -> ConfigDict:
    """Loads a configuration over the defaults.

    Args:
        file: a name or a file, with arguments after a colon, such as "digits:student=wrn10_1" or "mine.py".

    Raises:
        UserError: the file does not exist, fails, or names unknown settings.
    """
    if not file:
        raise UserError("no configuration; give one, e.g. --config=digits (--help says more)")
    given, *arguments = file.split(":", 1)
    path = files.find(given)
    config = defaults.get_config().lock()
    try:
        loaded = runpy.run_path(str(path))["get_config"](*arguments)
        if not isinstance(loaded, ConfigDict):
            raise TypeError(f"get_config() returned {type(loaded).__name__}, not ConfigDict")
        if "method" in loaded:
            add_section(config, loaded.method)
        check_keys(access.flatten(loaded), config)
        config.update(loaded)
        presets.check_recipe(config, f"--config={path}")
    except UserError:
        raise
    except Exception as error:  # the file is a program and can raise anything
        raise UserError(
            f"--config={path} cannot be loaded: {type(error).__name__}: {error}; fix the file "
            "(--debug shows where it fails)"
        ) from error
    return config


def from_settings(given: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """Returns the defaults, changed by settings from a program.

    Args:
        given: a complete configuration, or the settings that differ, by dotted key or in nested dictionaries.
            Among these, `method` applies its recipe first, and the others override it.

    Raises:
        UserError: a setting is unknown or has the wrong type; a complete configuration lacks its method's recipe.
    """
    config = defaults.get_config().lock()
    try:
        if isinstance(given, ConfigDict):
            if "method" in given:
                add_section(config, given.method)
            config.update(given)
            presets.check_recipe(config, "config")
        else:
            if "method" in given:
                use_method(config, given["method"])
            flat = _flat(given)
            check_keys(flat, config)
            config.update_from_flattened_dict(flat)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"config: {' '.join(str(error).split())}; all settings: {defaults.__file__}") from error
    return config


def _flat(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def load_checked(file: str | None, overrides: Sequence[str]) -> ConfigDict:
    """Loads a configuration file, applies overrides, checks the result and fills in what comes from a folder.

    Raises:
        UserError: as for `load`, `override`, `validate.check` and `from_folder.settle`.
    """
    config = load(file)
    override(config, overrides)
    validate.check(config)
    from_folder.settle(config)
    return config


def read_config(folder: Path) -> ConfigDict:
    """Reads the configuration with which the run in a workdir was started.

    Raises:
        UserError: the folder holds no run, or its configuration cannot be read.
    """
    place = next(iter(workdir.begun_stages(folder).values()), None)
    if place is None:
        raise UserError(f"--workdir={folder} holds no run (no {workdir.CONFIG}); name a run's folder")
    path = place / workdir.CONFIG
    config, what = defaults.get_config().lock(), " or of another version; restore it"
    saved = read_object(path, what, "config")
    try:
        add_section(config, saved["method"])
        config.update_from_flattened_dict(
            {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged{what}") from error
    return config


def run_name(file: str, changes: Mapping[str, Any]) -> str:
    """Returns a folder name, the same in all processes: configuration, arguments and a hash of the changes."""
    changes = {key: value for key, value in changes.items() if not key.startswith(access.PROCESSES)}
    path, _, given = file.partition(":")
    name = "-".join(filter(None, (Path(path).stem, re.sub(r"[^\w=.]+", "-", given))))
    return f"{name}-{digest(changes)[:8]}" if changes else name


def digest(settings: Mapping[str, Any]) -> str:
    """Returns a hexadecimal hash of the settings, equal only if all settings are equal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_keys(keys: Iterable[str], config: ConfigDict) -> None:
    """Raises `UserError`, which names the nearest keys, for a dotted key that the configuration does not have."""
    known = access.flatten(config)
    for key in keys:
        if key not in known:
            nearest = ", ".join(difflib.get_close_matches(key, known, n=3, cutoff=0))
            raise UserError(
                f"unknown configuration key {key!r}; the nearest are {nearest} (all: {defaults.__file__})"
            )


def override(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Applies `--config.KEY=VALUE` arguments to the configuration and returns the changes by key.

    Raises:
        UserError: a key is unknown, a value has the wrong type, an argument is not an override, or the method
            changes without its recipe.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt()
    try:
        arguments = ["cudfkd", *values.read_flags_from_files(list(arguments), force_gnu=False)]
        given = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments)
        keys = [match[1] for match in given if match]
        check_keys(keys, config)
        # With these settings alone: a flag is defined with its default as text, which takes long for all of them.
        config_flags.DEFINE_config_dict("config", _part(config, keys), flag_values=values, sys_argv=arguments)
        stray = values(arguments)[1:]
    except flags.Error as error:
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if wrong is None:
            raise UserError(f"{error}; --help shows what can be given") from error
        key, value = wrong[1], access.get(config, wrong[1])
        raise UserError(f"--config.{key}={wrong[2]} must be {_KINDS[type(value)]}, such as {value}") from error
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}; settings are given as --config.key=value")
    changes = config_flags.get_override_values(values["config"])
    if (method := changes.get("method", config.method)) != config.method:
        raise UserError(
            f"--config.method={method}: choose a method after the colon of --config, as in "
            f"--config=digits:method={method}, for its other settings come with it"
        )
    config.update_from_flattened_dict(changes)
    return changes


def _part(config: ConfigDict, keys: Iterable[str]) -> ConfigDict:
    """Returns the settings at these dotted keys."""
    part: dict[str, Any] = {}
    for key in keys:
        *sections, name = key.split(".")
        section = functools.reduce(lambda node, each: node.setdefault(each, {}), sections, part)
        section[name] = access.get(config, key)
    return ConfigDict(part)
