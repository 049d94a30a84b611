"""The networks that a configuration describes."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cudfkd_jax import models
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
    module = models.build_classifier(net.arch, net.num_classes, compute_dtype(config))
    return Classifier(module, net.mean, net.std, net.train_argument)


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


def check_teacher(config: ConfigDict, net: NetworkSpec, where: Path) -> None:
    """Raises `UserError` if a teacher's classes, image shape or architecture differ from the configuration's."""
    for key, wanted, found in (
        ("data.num_classes", config.data.num_classes, net.num_classes),
        ("data.image_shape", tuple(config.data.image_shape), net.image_shape),
        ("teacher.arch", config.teacher.module or config.teacher.arch, net.arch),
    ):
        if wanted != found:
            raise UserError(
                f"the teacher in {where} has {key.split('.')[1]} {found} and the configuration {wanted}; "
                f"name another --config.teacher.checkpoint or set --config.{key}"
            )
