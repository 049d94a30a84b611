"""Declarations of the settings that belong to one method alone.

A method declares them as a frozen dataclass with a default for each field, by `number` or `choice` where only some
values are valid:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        weight: float = number(0.8, above=0)  # of the term
        features: str = choice("bn", ("bn", "stages"))

They become the section of the configuration that has the method's name, here `--config.NAME.weight`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cudfkd_jax.runtime.errors import choose, require


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str


def number(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """Declares a number within bounds: > `above`, >= `least`, < `below`, <= `most`."""
    rules = []
    if above is not None:
        rules.append(_Rule(lambda value: value > above, f"must be greater than {above}"))
    if least is not None:
        rules.append(
            _Rule(lambda value: value >= least, f"must be at least {least}" if least else "must not be negative")
        )
    if below is not None:
        rules.append(_Rule(lambda value: value < below, f"must be less than {below}"))
    if most is not None:
        rules.append(_Rule(lambda value: value <= most, f"must be at most {most}"))
    return dataclasses.field(default=default, metadata={"rules": tuple(rules)})


def choice(default: str, valid: Sequence[str]) -> Any:
    """Declares one of several names."""
    return dataclasses.field(default=default, metadata={"valid": tuple(valid)})


def defaults(settings: type) -> dict[str, Any]:
    """Returns the default of each field of a declaration."""
    return {field.name: field.default for field in dataclasses.fields(settings)}


def check(section: str, own: Any) -> None:
    """Checks the values of an instance of a declaration, which is the configuration's `section`.

    Raises:
        UserError: a value is out of range; the message names the key, the value and the remedy.
    """
    for field in dataclasses.fields(own):
        key, value = f"{section}.{field.name}", getattr(own, field.name)
        if valid := field.metadata.get("valid"):
            choose(key, value, valid)
        for rule in field.metadata.get("rules", ()):
            require(key, value, rule.holds(value), rule.text)
