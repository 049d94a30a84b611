"""Lookup of the teacher: the one in a workdir, or a trained network in any supported file or folder."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cudfkd_jax.config import networks
from cudfkd_jax.config.jobs import TeacherSource
from cudfkd_jax.data import Split
from cudfkd_jax.evaluation import verification
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.models import torch_module
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.torch_module import TorchModule
from cudfkd_jax.runs import supervised
from cudfkd_jax.runs.export import DESCRIPTION as EXPORTED
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import flax_files, torch_files, torch_names, weights, workdir
from cudfkd_jax.storage.files import read_object
from cudfkd_jax.storage.weights import NetworkSpec, Trained

_CAUSES = (
    "it may have been trained with another activation, stem, stride or pooling, with another data.mean or "
    "data.std, with BGR images or with classes in another order"
)
_OR_DEEP = (
    "; or nothing is wrong, for in training mode they fit, and a deep network can amplify small differences: "
    "compare its accuracy with the one that it should have"
)


def find_teacher(
    source: TeacherSource, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Trained | None:
    """Loads the teacher that `source` names, or the one trained in this workdir; None without either.

    A PyTorch module without a checkpoint is a teacher with the weights that it holds.

    Args:
        source: `source.checkpoint` may be a file of weights, an Orbax folder, a trained network, an export of a
            run, or a workdir, whose own teacher may be imported.
        folder: the workdir.
        say: receives what was chosen in the file or left out.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit this configuration.
    """
    if source.checkpoint:
        path = Path(source.checkpoint).expanduser()
        places = (path, path / "teacher" / supervised.NET, path / supervised.NET)
        try:
            if (path / EXPORTED).is_file():
                path = path / str(_exported(path).get("file", ""))
            if path.is_file():
                return _import_teacher(source, path, say)
            where = next((place for place in places if (place / weights.DESCRIPTION).exists()), None)
            found = flax_files.find_checkpoint(path) if where is None and path.is_dir() else None
        except OSError as error:
            raise UserError(f"teacher.checkpoint={path}: {error.strerror}; check the path") from error
        if found:
            if found != path:
                say(f"teacher: the newest step in {path} is {found.name}")
            return _import_teacher(source, found, say)
        if where is None and (path / workdir.CONFIG).is_file():
            settings = read_object(path / workdir.CONFIG, "; restore it", "config")
            origin, key = settings.get("teacher.checkpoint"), settings.get("teacher.checkpoint_key", "")
            if origin and origin != source.checkpoint:
                return find_teacher(source._replace(checkpoint=origin, checkpoint_key=key), folder, say)
        if where is None:
            raise UserError(
                f"teacher.checkpoint={path} is neither a trained network (a folder with {weights.DESCRIPTION}), "
                "the workdir of a run with a teacher, a folder of Orbax or Flax nor a file of weights (.pth, "
                ".pt, .safetensors, .msgpack); check the path"
            )
    elif source.is_torch:
        module = source.net.classifier().module
        assert isinstance(module, TorchModule)
        variables = torch_module.own_variables(module, source.net.image_shape)
        say(f"teacher: the weights that {source.net.arch} holds")
        return Trained(source.net, variables, weights.digest(variables))
    else:
        where = folder / "teacher" / supervised.NET
        if not (where.parent / SUMMARY).exists():
            return None
        workdir.check_config(where.parent, source.settings)
    teacher = weights.load_net(where)
    networks.check_teacher(source.net, teacher.net, where)
    weights.check_weights(teacher.variables, teacher.net.abstract_variables(), where)
    return teacher


def _import_teacher(source: TeacherSource, path: Path, say: Callable[[str], None]) -> Trained:
    ours = _described_beside(path)
    net = ours or source.net
    networks.check_teacher(source.net, net, path)
    expected = net.abstract_variables()
    if path.is_dir() or flax_files.is_flax(path):
        variables, notes = flax_files.read_variables(path, expected, source.checkpoint_key)
    elif isinstance(module := net.classifier().module, TorchModule):
        read = torch_files.read_weights(path, source.checkpoint_key, own=sum(torch_module.names(module), ()))
        variables, notes = torch_names.to_module_variables(read.state_dict, module, expected, path), read.notes
        _check_normalisation(net, read.normalisation, path)
    elif source.is_module:
        raise UserError(
            f"teacher.checkpoint={path}: weights of PyTorch have no names in {net.arch}; give Flax's "
            f"own ({flax_files.SUFFIXES[0]}, or a folder of Orbax)"
        )
    else:
        read = torch_files.read_weights(path, source.checkpoint_key)
        if found := torch_names.infer(read.state_dict):
            named = dataclasses.replace(net, arch=found.arch, num_classes=found.num_classes)
            networks.check_teacher(net, named, path)
        variables, notes = torch_names.to_variables(read.state_dict, expected, path), read.notes
        _check_normalisation(net, read.normalisation, path)
        if not ours and (caution := torch_names.caution(net.arch, net.image_shape)):
            notes = (*notes, f"warning: {caution}")
    for note in notes:
        say(f"teacher: {note}")
    return Trained(net, variables, weights.digest(variables))


def _described_beside(path: Path) -> NetworkSpec | None:
    """Returns the description of an export that lies beside its file; None for other files."""
    if not path.with_name(EXPORTED).is_file():
        return None
    held = _exported(path.parent)
    if held.get("file") != path.name:
        return None
    try:
        return weights.network_spec({field.name: held[field.name] for field in dataclasses.fields(NetworkSpec)})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path.with_name(EXPORTED)} is damaged; restore it, or move it away") from error


def _exported(folder: Path) -> dict[str, Any]:
    return read_object(folder / EXPORTED, "; restore it, or move it away")


def _check_normalisation(net: NetworkSpec, found: Mapping[str, np.ndarray], path: Path) -> None:
    """Rejects a configuration whose mean or std is not that of a layer in the file, in [0, 1] or [0, 255]."""
    for kind, values in found.items():
        wanted = np.asarray(getattr(net, kind))
        if values.shape != wanted.shape or not any(
            np.allclose(values, scale * wanted, rtol=0.01, atol=0.005 * scale) for scale in (1, 255)
        ):
            raise UserError(
                f"{path} normalises images with {kind} {[round(float(v), 4) for v in values]} and data.{kind} is "
                f"{tuple(getattr(net, kind))}; set --config.data.{kind}"
            )


def verify_teacher(
    source: TeacherSource, network: Classifier, teacher: Trained, test: Split, say: Callable[[str], None]
) -> None:
    """Reports how the teacher does on some of the test images, and warns of what looks wrong.

    Raises:
        UserError: weights that were matched to an architecture by name do not recognise the images; the outputs
            are no logits, or depend on the rest of the batch.
    """
    found = verification.verify(network, teacher.variables, test, padding=source.padding, flip=source.flip)
    if found.probabilities:
        raise UserError(
            "the teacher returns probabilities (non-negative, with a sum of 1); expected logits. Leave out its "
            "softmax"
        )
    if found.depends:
        raise UserError(
            "the teacher's outputs for an image depend on the other images of the batch; expected a network in "
            "evaluation mode. Set --config.teacher.train_argument, or use running averages in its BatchNorm"
        )
    text = f"teacher: {found.accuracy:.1f} % of {found.images} test images right"
    if found.deviation:
        text += f"; BatchNorm statistics deviate by {found.deviation:.3f} at most, at {found.layer}"
    say(f"{text} (expected: below {found.limit:.3f})" if found.deviation else text)
    guesses = f"{found.accuracy:.1f} % of {found.images} test images are right, which is near chance"
    if found.is_guessing and source.verify and source.is_torch:
        raise UserError(
            f"teacher.module={teacher.net.arch}: {guesses}; its weights may not be loaded (set "
            f"--config.teacher.checkpoint), or {_CAUSES}. Set --config.teacher.verify=false to go on"
        )
    if found.is_guessing and source.verify and _is_matched_by_name(source):
        raise UserError(
            f"teacher.checkpoint={source.checkpoint}: {guesses}; the names and shapes fit "
            f"teacher.arch={teacher.net.arch}, but {_CAUSES}. Set --config.teacher.verify=false to go on"
        )
    if found.is_guessing or found.is_strange:
        or_deep = _OR_DEEP if found.may_amplify and not found.is_guessing else ""
        what = "accuracy is near chance" if found.is_guessing else "BatchNorm statistics do not fit these images"
        say(f"warning: the teacher's {what}: {_CAUSES}{or_deep}")


def _is_matched_by_name(source: TeacherSource) -> bool:
    path = Path(source.checkpoint).expanduser()
    return path.is_file() and not flax_files.is_flax(path) and not source.is_module
