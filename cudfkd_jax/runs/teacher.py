"""Lookup of the teacher: the one in a workdir, or a trained network in any supported file or folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cudfkd_jax.config import identity, networks
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.runs import supervised
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import flax_files, torch_files, torch_names, weights, workdir
from cudfkd_jax.storage.weights import NetworkSpec, Trained


def find_teacher(config: ConfigDict, folder: Path) -> Trained | None:
    """Loads the teacher that `teacher.checkpoint` names, or the one trained in this workdir; None without either.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit this configuration.
    """
    if config.teacher.checkpoint:
        path = Path(config.teacher.checkpoint).expanduser()
        places = (path, path / "teacher" / supervised.NET, path / supervised.NET)
        try:
            if path.is_file():
                return _import_teacher(config, path)
            where = next((place for place in places if (place / weights.DESCRIPTION).exists()), None)
            orbax = flax_files.find_orbax(path) if where is None and path.is_dir() else None
        except OSError as error:
            raise UserError(f"teacher.checkpoint={path}: {error.strerror}; check the path") from error
        if orbax:
            return _import_teacher(config, orbax)
        if where is None:
            raise UserError(
                f"teacher.checkpoint={path} is neither a trained network (a folder with {weights.DESCRIPTION}), "
                "the workdir of a run with a teacher, a folder of Orbax nor a file of weights (.pth, .pt, "
                ".safetensors, .msgpack); check the path"
            )
    else:
        where = folder / "teacher" / supervised.NET
        if not (where.parent / SUMMARY).exists():
            return None
        workdir.check_config(where.parent, identity.result_settings(config, "teacher"))
    teacher = weights.load_net(where)
    networks.check_teacher(config, teacher.net, where)
    weights.check_weights(teacher.variables, abstract_variables(config, teacher.net), where)
    return teacher


def _import_teacher(config: ConfigDict, path: Path) -> Trained:
    net = networks.described(config, "teacher")
    expected = abstract_variables(config, net)
    if path.is_dir() or path.suffix in flax_files.SUFFIXES:
        variables = flax_files.read_variables(path, expected)
    elif config.teacher.module:
        raise UserError(
            f"teacher.checkpoint={path}: weights of PyTorch have no names in {config.teacher.module}; give Flax's "
            f"own ({flax_files.SUFFIXES[0]}, or a folder of Orbax)"
        )
    else:
        state_dict = torch_files.read_state_dict(path)
        if found := torch_names.infer(state_dict):
            named = dataclasses.replace(net, arch=found.arch, num_classes=found.num_classes)
            networks.check_teacher(config, named, path)
        variables = torch_names.to_variables(state_dict, expected, path)
    return Trained(net, variables, weights.digest(variables))


def abstract_variables(config: ConfigDict, net: NetworkSpec) -> Any:
    """Returns the shapes and dtypes of a network's variables, as a tree of `jax.ShapeDtypeStruct`."""
    network = networks.classifier(config, net)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), net.image_shape))
