"""The same round made fast: what PyTorch offers for it without another framework or hand-written kernels.

* Channels-last memory, and bfloat16 autocast where it is asked for.
* `torch.compile` of both objectives, forward and backward, and of the generation of images; or without it, as it
  does not pay everywhere.
* No gradients for parameters that are not stepped: neither the teacher's, nor the student's while the generator
  is trained.
* On CUDA the images and teacher logits of all student steps of a round in one batch, and cuDNN's search for the
  fastest algorithm.
* Fused optimisers; gradients are released, not zeroed.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from torch_peer.rounds import Networks, PlainRound, Settings


class TunedRound(PlainRound):
    """`PlainRound` with the same results up to rounding."""

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        device: torch.device,
        *,
        compiled: bool,
        bfloat16: bool = False,
    ):
        """Takes the networks over; the compiler's work falls into the first round.

        Args:
            networks: moved to the device and trained in place.
            settings: of the round.
            device: where it is computed.
            compiled: by `torch.compile`.
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
        """cuDNN's search for them, which PyTorch does not do by itself."""
        if not self._on_cuda:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"


def compiler_fault(device: torch.device) -> str:
    """Why torch.compile does not work there, "" if it does; on the CPU it needs a C++ compiler, on CUDA Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, the linker, the operating system
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return ""
