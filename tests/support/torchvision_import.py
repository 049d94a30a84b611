"""Imports torchvision even beside a build of PyTorch that its compiled operators do not fit.

timm imports it, too. Its Python code registers shapes for these operators, and classifiers call none of them.
"""

from types import ModuleType

import pytest

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept = []  # the declarations end with their library


def import_or_skip() -> ModuleType:
    """Returns torchvision, or skips where it is not installed."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        _kept.append(library := torch.library.Library("torchvision", "FRAGMENT"))
        for name in _OPERATORS:
            library.define(name + _SIGNATURE)
        import torchvision

        return torchvision
