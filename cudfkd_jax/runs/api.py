"""Distillation from Python: takes networks as objects, needs no data set and returns the student."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import unfreeze
from ml_collections import ConfigDict

from cudfkd_jax.config import access, jobs, networks, precision, validate
from cudfkd_jax.config.loading import from_settings
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.data import Split
from cudfkd_jax.data.base import check_intensities, make_split, one_line
from cudfkd_jax.evaluation.summary import read_summary
from cudfkd_jax.models import imported, torch_module
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import stages
from cudfkd_jax.runs.distill import STUDENT
from cudfkd_jax.runs.result import Result
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import TORCH
from cudfkd_jax.storage import records, weights
from cudfkd_jax.storage.weights import NetworkSpec
from cudfkd_jax.training.trainer import METRICS, Callback

# The third form includes a torch.nn.Module, which is callable.
Teacher = tuple[nn.Module, Mapping[str, Any]] | Callable[[jax.Array], jax.Array] | str | Path
Student = nn.Module | Callable[..., Any] | str


def distill(
    *,
    teacher: Teacher,
    student: Student,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    config: ConfigDict | Mapping[str, Any] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    workdir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Distils a teacher into a student without data.

    If `jax.distributed.initialize` has connected several processes, each calls this with the same arguments; the
    first writes to `workdir`, and all return the result.

    Args:
        teacher: a linen classifier and its variables, all collections; a Flax NNX classifier; or a function of
            `jax.numpy` from images to logits, which has no BatchNorm statistics. Each takes normalised float32
            images `[B, H, W, C]` and returns logits `[B, num_classes]`. Or a `torch.nn.Module` of such images as
            `[B, C, H, W]`, run in evaluation mode with the weights that it holds (needs torchax). Or the path of
            a run, or of weights of PyTorch, Flax or Orbax for the network `config.teacher.arch`; see the setting
            `teacher.checkpoint`.
        student: a linen classifier; a class or function of `rngs` that returns an NNX classifier, or such a
            classifier, which is trained on from its own weights; or the name of one in this package, such as
            "wrn16_1". An NNX module passed in keeps its weights and its mode.
        image_shape: `(H, W, C)`.
        num_classes: length of the logits.
        mean, std: for images in [0, 1], the teacher's input normalisation: one number per channel, or one for all
            channels; None: 0 and 1.
        config: the settings of `cudfkd_jax.defaults`: a ConfigDict (see `load_config`), or only the settings that
            differ from the defaults, such as `{"distill.epochs": 100}` or `{"distill": {"epochs": 100}}`;
            `{"method": "dafl"}` brings the recipe of that method. The arguments replace its data and networks.
        test: images uint8 `[N, H, W, C]` and labels `[N]` or `[N, 1]`, used only for evaluation.
        workdir: folder of the run's files; a repeated call resumes the run. None keeps no files.
        callbacks: hooks into the training; see `cudfkd_jax.Callback`.

    Returns:
        The student, its metrics and the summary.

    Raises:
        UserError: an argument does not fit the others; nothing was written.
        StoppedError: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1; the state is saved in `workdir`.
        RunFailedError: a loss became non-finite.
        OutOfMemoryError: names the settings to lower.
    """
    settings = _settings(config, image_shape, num_classes, mean, std, student)
    precision.settle(settings, None if workdir is None else Path(workdir).expanduser())
    say: Callable[[str], None] = print if processes.is_first() else lambda text: None
    pair = Pair(*processes.together(lambda: _teacher(teacher, settings, say)), *_student(student, settings))
    settings.data.update(source=access.NO_DATA, name="" if test is None else "test images")
    if test is None:
        validate.check_normalisation(settings)
    settings.student.module = "" if isinstance(student, str) else pair.student_net.arch
    if workdir is None:
        settings.log.update(report=False, samples_every_epochs=0, tensorboard=False)
    split = None if test is None else _split(test, settings)
    with _folder(workdir) as folder:
        file = str(teacher) if isinstance(teacher, str | Path) else ""
        stages.run_pair(settings, folder, pair, split, say, callbacks, teacher_file=file)
        found = processes.from_first(lambda: _result(folder))
    return Result(
        student=weights.unpack(found["student"]),
        metrics=found["summary"]["student"],
        summary=found["summary"],
        history=found["history"],
        classifier=pair.student,
        workdir=None if workdir is None else folder,
    )


def _result(folder: Path) -> dict[str, Any]:
    return {
        "student": weights.pack(weights.load_net(folder / STUDENT)),
        "summary": read_summary(folder),
        "history": records.read(folder / METRICS),
    }


def _settings(
    given: ConfigDict | Mapping[str, Any] | None,
    image_shape: Sequence[int],
    num_classes: int,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    student: Student,
) -> ConfigDict:
    """Returns the checked configuration; networks passed as objects override its own."""
    config = from_settings(given or {})
    channels = image_shape[-1] if image_shape else 0
    config.data.update(
        image_shape=tuple(image_shape),
        num_classes=num_classes,
        mean=_per_channel("mean", 0.0 if mean is None else mean, channels),
        std=_per_channel("std", 1.0 if std is None else std, channels),
    )
    validate.check_one_process(config, "distill(config=...)")
    config.teacher.module = config.student.module = ""
    if isinstance(student, str):
        config.student.arch = student
    validate.check(config)
    return config


def _per_channel(name: str, given: float | Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}={given!r}; expected a number, or one per channel") from error
    return (float(values),) * channels if values.ndim == 0 else tuple(values.tolist())


def _teacher(
    teacher: Teacher, config: ConfigDict, say: Callable[[str], None]
) -> tuple[Classifier, NetworkSpec, dict[str, Any]]:
    if isinstance(teacher, str | Path):
        found = find_teacher(jobs.teacher_source(config)._replace(checkpoint=str(teacher)), Path(), say)
        assert found
        return networks.classifier(config, found.net), found.net, found.variables
    module: Any
    given: Mapping[str, Any]
    if torch_module.is_network(teacher):
        module = torch_module.wrap(
            teacher, config.data.num_classes, f"teacher {type(teacher).__name__}", access.compute_dtype(config)
        )
        given = torch_module.own_variables(module, config.data.image_shape)
    elif isinstance(teacher, tuple):
        module, given = teacher
    elif imported.is_nnx(teacher):
        module, given = _nnx(teacher)
    else:
        _check_function(teacher, config)
        module, given = _Function(teacher), {}
    tree = imported.plain_variables(module, unfreeze(dict(given)))
    variables = jax.tree.map(np.asarray, {"params": {}, "batch_stats": {}} | tree)
    for path, leaf in traverse_util.flatten_dict(variables).items():
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise UserError(f"teacher: {'/'.join(path)} holds NaN or infinite values; choose a sound teacher")
    return *_network(module, config, config.teacher.train_argument), variables


def _nnx(teacher: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(teacher, type):
        raise UserError(f"teacher is the class {teacher.__name__}, which has no weights; give a trained module")
    from cudfkd_jax.models import nnx_module

    return teacher, nnx_module.variables_of(teacher)


def _student(student: Student, config: ConfigDict) -> tuple[Classifier, NetworkSpec]:
    if isinstance(student, str):
        net = networks.described(config, "student")
        return networks.classifier(config, net), net
    validate.check_trainable(student)
    return _network(student, config, config.student.train_argument)


def _network(network: Any, config: ConfigDict, train_argument: str) -> tuple[Classifier, NetworkSpec]:
    d, module = config.data, network
    if isinstance(network, _Function):
        arch = f"{_Function.__module__}:{_Function.__qualname__}"
    elif isinstance(network, torch_module.TorchModule):
        kind = type(network.network)
        arch = f"{TORCH}{kind.__module__}:{kind.__qualname__}"
    else:
        arch = imported.path_of(network)
        module = imported.as_linen(network, arch)
    net = NetworkSpec(arch, d.num_classes, d.image_shape, d.mean, d.std, {}, train_argument)
    return Classifier(module, d.mean, d.std, train_argument), net


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function in place of a linen module without variables.

    A real module around it would become the parent of linen modules that the function builds.
    """

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.function(images)

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> tuple[jax.Array, dict[str, Any]]:
        return self(images), {}

    def init(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {}


def _check_function(function: Callable[[jax.Array], jax.Array], config: ConfigDict) -> None:
    """Rejects a function that JAX cannot differentiate, as all methods must."""
    images = jax.ShapeDtypeStruct((2, *config.data.image_shape), jnp.float32)
    try:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(function(x))), images)
    except Exception as error:  # a user's function can fail in any way
        raise UserError(
            f"the teacher function has no gradients in JAX ({type(error).__name__}), and method={config.method} "
            "makes its images by the teacher's gradients; give a function of jax.numpy, or a linen module and its "
            "variables"
        ) from error


def _split(test: Any, config: ConfigDict) -> Split:
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise UserError(
            f"test is {_form(test)}; expected a pair (images, labels): uint8 [N, *{config.data.image_shape}] and "
            "integers [N]"
        )
    try:
        images, labels = (np.asarray(part) for part in test)
    except Exception as error:  # lists of several lengths, or arrays of another library
        raise UserError(f"test: images or labels are no arrays ({one_line(error)}); give NumPy arrays") from error
    split = make_split(images, labels, config.data.num_classes, "test")
    if images.shape[1:] != config.data.image_shape:
        raise UserError(f"test: images are {list(images.shape)}; expected [N, *{config.data.image_shape}]")
    check_intensities(split, "test")
    return split


def _form(value: Any) -> str:
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return f"one {kind} {list(value.shape)}"
    return f"a {kind} of {len(value)}" if hasattr(value, "__len__") else f"of type {kind}"


@contextlib.contextmanager
def _folder(workdir: str | Path | None) -> Iterator[Path]:
    if workdir is not None:
        yield Path(workdir).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="cudfkd_") as folder:
        yield Path(folder)
