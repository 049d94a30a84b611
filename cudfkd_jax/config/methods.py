"""The distillation method of a configuration."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from cudfkd_jax import methods
from cudfkd_jax.config.access import NO_DATA, compute_dtype, generator_stages, synthesis_batch_size
from cudfkd_jax.config.defaults import get_config
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.methods import setting
from cudfkd_jax.methods.base import Method, MethodSpec, RecipeContext
from cudfkd_jax.methods.context import (
    CurriculumSettings,
    DistillSettings,
    GeneratorSettings,
    ImageSettings,
    MemorySettings,
    MethodContext,
    MethodSettings,
    SynthesisSettings,
)
from cudfkd_jax.methods.memory.replay import replayed_rows
from cudfkd_jax.models.capture import has_batch_norm
from cudfkd_jax.runtime.errors import UserError

_Section = TypeVar("_Section")


def spec(config: ConfigDict) -> MethodSpec:
    """Returns the description of the configuration's method.

    Raises:
        UserError: the method is unknown.
    """
    return methods.find(config.method)


def use_method(config: ConfigDict, name: str) -> None:
    """Selects a method, by name or import path, together with its recipe.

    Raises:
        UserError: the method is unknown.
    """
    chosen = methods.find(name)
    config.method = name
    add_section(config, name)
    context = RecipeContext(
        teacher=config.teacher.arch,
        student=config.student.arch,
        # References: what is computed from them follows later changes of these settings.
        num_classes=config.data.get_ref("num_classes").to_float(),
        synthesis_steps=config.distill.get_ref("synthesis_steps").to_float(),
    )
    config.update(chosen.recipe_for(context))


def add_section(config: ConfigDict, name: str) -> None:
    """Adds the section of a method's own settings, at their defaults, unless the configuration has it.

    Raises:
        UserError: the method is unknown.
    """
    chosen = methods.find(name)
    if name not in methods.METHODS and chosen.name in get_config():
        raise UserError(f"{name} has the name {chosen.name!r} of a setting; choose another name")
    if chosen.settings and chosen.name not in config:
        with config.unlocked():
            config[chosen.name] = ConfigDict(setting.defaults(chosen.settings))


def method_settings(config: ConfigDict) -> MethodSettings:
    """Returns all settings that the method may depend on."""
    return MethodSettings(**_settings(config))


def method(config: ConfigDict, pair: Pair) -> Method:
    """Builds the distillation method, without its BN term if the teacher has no BatchNorm.

    Raises:
        UserError: the method requires BatchNorm, or settings are incompatible.
    """
    chosen, has_bn = spec(config), has_batch_norm(pair.teacher_variables)
    if chosen.needs_batch_norm and not has_bn:
        raise UserError(
            f"method={config.method} aligns the teacher's BatchNorm statistics and this teacher has none; choose "
            "another method"
        )
    return chosen.build(
        MethodContext(**_settings(config), teacher=pair.teacher, student=pair.student, has_batch_norm=has_bn)
    )


def shared_sizes(config: ConfigDict) -> dict[str, int]:
    """Returns the batch sizes, besides `distill.batch_size`, that devices share, by the setting behind each."""
    chosen = spec(config)
    sizes = {"synthesis.batch_size": synthesis_batch_size(config)} if chosen.pooled else {}
    if chosen.replays or config.memory.capacity:
        sizes["distill.batch_size // 8"] = replayed_rows(config.distill.batch_size)
    return sizes


def _settings(config: ConfigDict) -> dict[str, Any]:
    chosen = spec(config)
    d = config.data
    data = {**d, "image_shape": tuple(d.image_shape), "has_images": d.source != NO_DATA}
    generator = {**config.generator, "stages": generator_stages(config)}
    synthesis = {**config.synthesis, "batch_size": synthesis_batch_size(config)}
    return {
        "data": _section(ImageSettings, data),
        "generator": _section(GeneratorSettings, generator),
        "distill": _section(DistillSettings, config.distill),
        "curriculum": _section(CurriculumSettings, config.curriculum),
        "synthesis": _section(SynthesisSettings, synthesis),
        "memory": _section(MemorySettings, config.memory),
        "own": chosen.settings(**config[chosen.name]) if chosen.settings else None,
        "released_js": config.released_js,
        "dtype": compute_dtype(config),
    }


def _section(kind: Callable[..., _Section], values: Mapping[str, Any]) -> _Section:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
