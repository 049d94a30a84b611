"""The networks that a configuration describes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cudfkd_jax.config.access import compute_dtype
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.weights import NetworkSpec


def described(config: ConfigDict, role: str) -> NetworkSpec:
    """Returns the description, without metrics, of the configuration's "teacher" or "student"."""
    d, named = config.data, config[role]
    arch = named.module or named.arch
    return NetworkSpec(
        arch, d.num_classes, tuple(d.image_shape), tuple(d.mean), tuple(d.std), {}, named.train_argument
    )


def classifier(config: ConfigDict, net: NetworkSpec) -> Classifier:
    """Builds the network that a description names."""
    return net.classifier(compute_dtype(config))


class Pair(NamedTuple):
    """The two networks of a data-free run."""

    teacher: Classifier
    teacher_net: NetworkSpec
    teacher_variables: Any  # arrays, or `jax.ShapeDtypeStruct` where only shapes are needed
    student: Classifier
    student_net: NetworkSpec


def pair(config: ConfigDict, teacher: NetworkSpec, variables: Any) -> Pair:
    """Returns the configuration's student, paired with a teacher that has these variables."""
    student_net = described(config, "student")
    return Pair(classifier(config, teacher), teacher, variables, classifier(config, student_net), student_net)


def check_logits(pair: Pair) -> None:
    """Traces both networks without compiling or computing anything.

    Raises:
        UserError: a network cannot be applied to the images, or does not return logits.
    """
    shape = pair.student_net.image_shape
    _check_logits("teacher", pair.teacher, pair.teacher_net, lambda: pair.teacher_variables)
    _check_logits("student", pair.student, pair.student_net, lambda: pair.student.init(jax.random.key(0), shape))


def _check_logits(role: str, network: Classifier, net: NetworkSpec, variables: Callable[[], Any]) -> None:
    images = jax.ShapeDtypeStruct((2, *net.image_shape), jnp.float32)
    try:
        logits = jax.eval_shape(lambda x, v: network(v, x).value, images, jax.eval_shape(variables))
    except UserError:
        raise
    except Exception as error:  # a user's module can fail in any way
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the {role} cannot be applied to images {list(net.image_shape)}: {text}; "
            f"fix --config.{role}.module, its weights or --config.data.image_shape"
        ) from error
    if getattr(logits, "shape", None) != (2, net.num_classes):
        kind = f"shape {list(logits.shape)}" if hasattr(logits, "shape") else f"a {type(logits).__name__}"
        raise UserError(
            f"the {role} returns {kind} for 2 images, not logits [2, {net.num_classes}]; "
            f"choose another --config.{role}.module or set --config.data.num_classes"
        )


def check_teacher(wanted: NetworkSpec, found: NetworkSpec, where: Path) -> None:
    """Raises `UserError` if a teacher's classes, image shape or architecture differ from the configuration's."""
    for key, asked, there in (
        ("data.num_classes", wanted.num_classes, found.num_classes),
        ("data.image_shape", wanted.image_shape, found.image_shape),
        ("teacher.arch", wanted.arch, found.arch),
    ):
        if asked != there:
            raise UserError(
                f"the teacher in {where} has {key.split('.')[1]} {there} and the configuration {asked}; "
                f"name another --config.teacher.checkpoint or set --config.{key}"
            )
