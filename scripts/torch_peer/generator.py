"""The generator of `cudfkd_jax.models.generator` in PyTorch."""

import torch
from torch import nn
from torch.nn import functional

from torch_peer.losses import widened


class Generator(nn.Module):
    """Maps latents [B, latent_dim] to images [B, C, H, W] in [0, 1].

    Attributes:
        first_shape: (channels, height, width) of the linear layer's maps.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, widths: tuple[int, ...]):
        """Builds the layers.

        Args:
            image_shape: (H, W, C).
            latent_dim: the length of z.
            widths: channels of the first maps and after each up-sampling.
        """
        super().__init__()
        height, width, channels = image_shape
        self.stages = len(widths) - 1
        self.image_shape = image_shape
        self.first_shape = (widths[0], -(-height // 2**self.stages), -(-width // 2**self.stages))
        self.linear = nn.Linear(latent_dim, widths[0] * self.first_shape[1] * self.first_shape[2])
        self.bn0 = nn.BatchNorm2d(widths[0])
        for stage in range(1, self.stages + 1):
            conv = nn.Conv2d(widths[stage - 1], widths[stage], 3, padding=1, bias=False)
            self.add_module(f"conv{stage}", conv)
            self.add_module(f"bn{stage}", nn.BatchNorm2d(widths[stage]))
        self.add_module(f"conv{self.stages + 1}", nn.Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.linear(z).view(-1, *self.first_shape))
        for stage in range(1, self.stages + 1):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = getattr(self, f"bn{stage}")(getattr(self, f"conv{stage}")(x))
            x = functional.leaky_relu(x, 0.2)
        x = getattr(self, f"conv{self.stages + 1}")(x)
        height, width, _ = self.image_shape
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        x = x[:, :, top : top + height, left : left + width]
        return torch.sigmoid(widened(x))
