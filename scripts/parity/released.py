"""Imports the released code from the user's checkouts; stubs replace its unused imports."""

import ast
import contextlib
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from cudfkd_jax.runtime.errors import UserError

# Imported by the code bases named `datafree` but unused by the functions called here: other tasks, plots, other
# generators.
_UNUSED = (
    *("datafree.datasets.nyu", "datafree.rep_transfer", "datafree.utils.inception"),
    *("datafree.utils.sync_transforms", "datafree.models.deeplab", "datafree.models.glow", "datafree.models.jem"),
    *("registry", "seaborn", "pandas", "torchvision.models.utils"),
)


class DataFree(NamedTuple):
    """A code base named `datafree`.

    ljrprocc/DataFree is CuDFKD's release, with its benchmark's versions of DAFL, ZSKT, DFAD, DFQ, ADI and CMI;
    ljrprocc/DFKD is AdaDFKD's and zju-vipa/Fast-Datafree FastDFKD's.
    """

    kd: Any  # the script datafree_kd, with `train`
    synthesis: Any
    generators: Any
    wrn: Any
    resnet: Any
    vgg: Any
    criterions: Any
    curriculum: Any  # the module with `curr_v` and `lambda_scheduler`
    hooks: Any
    metrics: Any
    utils: Any

    def normaliser(self, mean: Sequence[float], std: Sequence[float]) -> Any:
        return self.utils.Normalizer(mean=mean, std=std)


class PreDfkd(NamedTuple):
    """kuluhan/PRE-DFKD."""

    distillation: Any
    generator: Any


class ZeroShot(NamedTuple):
    """polo5/ZeroShotKnowledgeTransfer, ZSKT's original."""

    solver: Any
    wrn: Any


def data_free(folder: Path) -> DataFree:
    """Imports ljrprocc/DataFree.

    Raises:
        UserError: the folder is not a checkout of it.
    """
    _check(folder, "datafree_kd.py", "RELEASE", "ljrprocc/DataFree")
    _torchvision()
    return _data_free(folder, _UNUSED)


def dfkd(folder: Path) -> DataFree:
    """Imports ljrprocc/DFKD; its `.cuda()` stays on the CPU from now on.

    Raises:
        UserError: the folder is not a checkout of it.
    """
    _check(folder, "datafree/synthesis/adadfkd.py", "ADADFKD", "ljrprocc/DFKD")
    return _another_data_free(folder, _UNUSED)


def fast_datafree(folder: Path) -> DataFree:
    """Imports zju-vipa/Fast-Datafree; its `.cuda()` stays on the CPU from now on.

    Raises:
        UserError: the folder is not a checkout of it.
    """
    _check(folder, "datafree/synthesis/fast_meta_imagenet.py", "FASTDFKD", "zju-vipa/Fast-Datafree")
    return _another_data_free(folder, (*_UNUSED, "datafree.synthesis.fast_meta_imagenet"))


def pre_dfkd(folder: Path) -> PreDfkd:
    """Imports kuluhan/PRE-DFKD and makes its `.cuda()` and device="cuda" stay on the CPU from now on.

    Raises:
        UserError: the folder is not a checkout of it.
    """
    _check(folder, "distillation.py", "PREDFKD", "kuluhan/PRE-DFKD")
    _torchvision()
    _stay_on_the_cpu()
    with _first_on_path(folder), _modules_of_its_own("utils", "networks", "distillation"):
        return PreDfkd(importlib.import_module("distillation"), importlib.import_module("networks.generator"))


def zero_shot(folder: Path) -> ZeroShot:
    """Imports polo5/ZeroShotKnowledgeTransfer, without its logger and data sets.

    Raises:
        UserError: the folder is not a checkout of it.
    """
    _check(folder, "solver.py", "ZSKT", "polo5/ZeroShotKnowledgeTransfer")
    _torchvision()
    with _first_on_path(folder), _modules_of_its_own("utils", "models", "solver"):
        for name in ("utils.logger", "utils.datasets", "models.selector"):
            sys.modules[name] = ModuleType(name)
        with contextlib.suppress(KeyError):
            del sys.modules["utils.helpers"]
        sys.modules["utils.helpers"] = _helpers()
        return ZeroShot(importlib.import_module("solver"), importlib.import_module("models.wresnet"))


def arguments(**changes: Any) -> SimpleNamespace:
    """Returns the arguments that the script datafree_kd passes to its `train`."""
    defaults = {
        "method": "cudfkd",
        "dataset": "cifar10",
        "gpu": None,
        "autocast": contextlib.nullcontext,
        "curr_option": "none",
        "lambda_0": 2.0,
        "fp16": False,
        "print_freq": 0,
        "log_fidelity": False,
        "distributed": False,
        "logger": None,
        "local_rank": -1,
        "loss": "l1",
        "pretrained_mode": "gan",
        "log_tag": "",
        "current_epoch": 0,
    }
    return SimpleNamespace(**defaults | changes)


def script(folder: Path, name: str) -> dict[str, str]:
    """Reads the arguments of a script with one command, e.g. "cudfkd/cudfkd_timagenet"; a bare flag is ""."""
    (given,) = commands(folder, name)
    return given


def commands(folder: Path, name: str) -> list[dict[str, str]]:
    """Reads the arguments of each command of a script; a bare flag is ""."""
    text = (folder / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
    lines = re.sub(r"#.*", "", text).replace("\\\n", " ").splitlines()
    found = [dict(re.findall(r"--(\w+)(?:[ =](?!--)(\S+))?", line)) for line in lines]
    return [given for given in found if given]


def expression(folder: Path, file: str, variable: str) -> Callable[..., Any]:
    """Returns the expression that a file of a checkout first assigns to a variable, as a function of its names."""
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
    assigned = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [variable]
    )
    code = compile(ast.Expression(next(assigned)), file, "eval")
    return lambda **names: eval(code, names)


def commit(folder: Path) -> str:
    """Returns the commit of a checkout, with a mark if files are changed."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _data_free(folder: Path, unused: Sequence[str]) -> DataFree:
    for name in unused:
        sys.modules.setdefault(name, _Stub(name))
    with _first_on_path(folder):
        kd = importlib.import_module("datafree_kd")
        modules = {
            name: importlib.import_module(f"datafree.{path}")
            for name, path in {
                "synthesis": "synthesis",
                "generators": "models.generator",
                "wrn": "models.classifiers.wresnet",
                "resnet": "models.classifiers.resnet",
                "vgg": "models.classifiers.vgg",
                "criterions": "criterions",
                "curriculum": "datasets.utils",
                "hooks": "hooks",
                "metrics": "metrics",
                "utils": "utils",
            }.items()
        }
    return DataFree(kd, **modules)


def _another_data_free(folder: Path, unused: Sequence[str]) -> DataFree:
    """Imports a code base that has the module names of ljrprocc/DataFree."""
    _torchvision()
    _stay_on_the_cpu()
    with _modules_of_its_own("datafree", "datafree_kd", "registry"):
        return _data_free(folder, unused)


def _stay_on_the_cpu() -> None:
    for kind in (torch.Tensor, torch.nn.Module):
        setattr(kind, "cuda", lambda self, *arguments, **options: self)  # noqa: B010


class _Stub(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _helpers() -> ModuleType:
    """Returns a replacement of ZSKT's helpers, of which the solver needs only a running mean."""
    made = ModuleType("utils.helpers")

    class AggregateScalar:
        def update(self, value: float, weight: int = 1) -> None: ...

        def reset(self) -> None: ...

        def avg(self) -> float:
            return 0.0

    made.__dict__.update(AggregateScalar=AggregateScalar, torch=torch)
    return made


def _check(folder: Path, file: str, variable: str, repository: str) -> None:
    if not (folder / file).is_file():
        raise UserError(f"{variable}={folder} has no {file}; expected a checkout of {repository}")


def _torchvision() -> None:
    """Imports torchvision even if its compiled operations, which are not called, need another PyTorch build."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _KEPT.append(library)
        for operation in ("nms", "qnms"):
            library.define(f"{operation}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


_KEPT: list[Any] = []  # operations disappear with the library that defines them


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


@contextlib.contextmanager
def _modules_of_its_own(*names: str) -> Iterator[None]:
    """Hides modules of these names temporarily, because several checkouts have a `utils`."""
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(held)
