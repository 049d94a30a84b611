"""The same round, optimised with PyTorch's own means: no other framework and no hand-written kernels.

* Channels-last memory, and optionally bfloat16 autocast.
* Optionally, since it is not faster everywhere, `torch.compile` of both objectives, forward and backward, and of
  the generation of images.
* No gradients for parameters without an update: the teacher's, and the student's in generator steps.
* On CUDA, the images and teacher logits of all student steps of a round in one batch, and cuDNN's search for the
  fastest algorithm.
* Fused optimisers; gradients are set to None and not zeroed.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from torch_peer.rounds import Networks, PlainRound, Settings


class TunedRound(PlainRound):
    """A faster `PlainRound` with the same results up to rounding."""

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        device: torch.device,
        *,
        compiled: bool,
        bfloat16: bool = False,
    ):
        """Moves the networks to the device; compilation happens in the first round.

        Args:
            networks: trained in place.
            settings: the round's settings.
            device: runs the round.
            compiled: whether to use `torch.compile`.
            bfloat16: whether forward passes run under autocast.
        """
        super().__init__(networks, settings, device)
        self.bfloat16 = bfloat16
        nets: tuple[Any, ...] = (self.generator, self.teacher, self.student)
        for net in nets:
            net.to(memory_format=torch.channels_last)
        self.teacher.requires_grad_(False)
        self.compiled = compiled
        if compiled:
            self.synthesis_loss = torch.compile(self.synthesis_loss)  # type: ignore[method-assign]
            self.student_loss = torch.compile(self.student_loss)  # type: ignore[method-assign]
            self.generate = torch.compile(self.generate)  # type: ignore[method-assign]

    @property
    def description(self) -> str:
        parts = ["torch.compile" if self.compiled else "eager"]
        parts += ["bfloat16 autocast" if self.bfloat16 else "float32"]
        parts += ["channels_last", "fused optimisers", "frozen parameters"]
        return ", ".join([*parts, *(["a round's images in one batch"] if self._on_cuda else [])])

    def synthesise(self, latents: Tensor) -> list[Tensor]:
        self.student.requires_grad_(False)
        with self._fastest_algorithms():
            values = super().synthesise(latents)
        self.student.requires_grad_(True)
        return values

    def train(self, latents: Tensor) -> list[Tensor]:
        with self._fastest_algorithms():
            return super().train(latents)

    def batches(self, latents: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        if not self._on_cuda:
            return super().batches(latents)
        with self.precision():
            images, logits = self.generate(latents.flatten(0, 1))
        size = self.settings.batch_size
        return zip(images.split(size), logits.split(size), strict=True)

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

    def _make_optimisers(self, **options: bool) -> None:
        super()._make_optimisers(fused=True, **options)

    def _fastest_algorithms(self) -> AbstractContextManager[object]:
        """Returns a context with cuDNN's search for the fastest algorithms, which is off by default."""
        if not self._on_cuda:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"


def compiler_fault(device: torch.device) -> str:
    """Returns why `torch.compile` fails on a device, or ""; it needs a C++ compiler (CPU) or Triton (CUDA)."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, the linker, the operating system
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return ""
