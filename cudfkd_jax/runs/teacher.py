"""Lookup of the teacher: the one in a workdir, or a trained network in any supported file or folder."""

import dataclasses
from pathlib import Path

from cudfkd_jax.config import networks
from cudfkd_jax.config.jobs import TeacherSource
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.runs import supervised
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import flax_files, torch_files, torch_names, weights, workdir
from cudfkd_jax.storage.weights import Trained


def find_teacher(source: TeacherSource, folder: Path) -> Trained | None:
    """Loads the teacher that `source` names, or the one trained in this workdir; None without either.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit this configuration.
    """
    if source.checkpoint:
        path = Path(source.checkpoint).expanduser()
        places = (path, path / "teacher" / supervised.NET, path / supervised.NET)
        try:
            if path.is_file():
                return _import_teacher(source, path)
            where = next((place for place in places if (place / weights.DESCRIPTION).exists()), None)
            orbax = flax_files.find_orbax(path) if where is None and path.is_dir() else None
        except OSError as error:
            raise UserError(f"teacher.checkpoint={path}: {error.strerror}; check the path") from error
        if orbax:
            return _import_teacher(source, orbax)
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
        workdir.check_config(where.parent, source.settings)
    teacher = weights.load_net(where)
    networks.check_teacher(source.net, teacher.net, where)
    weights.check_weights(teacher.variables, teacher.net.abstract_variables(), where)
    return teacher


def _import_teacher(source: TeacherSource, path: Path) -> Trained:
    net, expected = source.net, source.net.abstract_variables()
    if path.is_dir() or path.suffix in flax_files.SUFFIXES:
        variables = flax_files.read_variables(path, expected)
    elif source.is_module:
        raise UserError(
            f"teacher.checkpoint={path}: weights of PyTorch have no names in {net.arch}; give Flax's "
            f"own ({flax_files.SUFFIXES[0]}, or a folder of Orbax)"
        )
    else:
        state_dict = torch_files.read_state_dict(path)
        if found := torch_names.infer(state_dict):
            named = dataclasses.replace(net, arch=found.arch, num_classes=found.num_classes)
            networks.check_teacher(net, named, path)
        variables = torch_names.to_variables(state_dict, expected, path)
    return Trained(net, variables, weights.digest(variables))
