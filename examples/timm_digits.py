"""A teacher from timm: trains a ResNet-10-T on scikit-learn's digits at 32×32 in PyTorch and saves its state dict.

    pip install 'cudfkd_jax[torchax]' timm
    python examples/timm_digits.py teacher.pth
    cudfkd --config=digits --config.data.image_shape='(32, 32, 1)' \\
        --config.teacher.module=torch:examples.timm_digits:make --config.teacher.checkpoint=teacher.pth \\
        --workdir=runs/timm_digits

The second command distils a WRN-16-1 from it without the digits, which only measure.
"""

import sys

import numpy as np
import timm
import torch
import torch.nn.functional as F

from cudfkd_jax.data import load

SHAPE = (32, 32, 1)
MEAN, STD = 0.3058, 0.3191  # those of configs/digits.py
EPOCHS, BATCH, SHIFT = 12, 64, 3


def make() -> torch.nn.Module:
    """Returns the untrained network: what `teacher.module` names."""
    return timm.create_model("resnet10t", in_chans=1, num_classes=10)


def train(epochs: int = EPOCHS) -> tuple[torch.nn.Module, float]:
    """Trains a network; returns it and its accuracy on the test images in percent."""
    torch.manual_seed(0)
    names = ("train", "test")
    data = load("digits", name="digits", directory="", image_shape=SHAPE, num_classes=10, splits=names)
    (x, y), (x_test, y_test) = (_tensors(data.splits[name]) for name in names)
    network = make()
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(network(_shifted(x[chosen])), y[chosen]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        right = network.eval()(x_test).argmax(1) == y_test
    return network, 100 * right.float().mean().item()


def _tensors(split) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(split.images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    return (images - MEAN) / STD, torch.from_numpy(split.labels.astype(np.int64))


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Moves the images of a batch by up to `SHIFT` pixels, each its own way."""
    size = images.shape[-1]
    wide = F.pad(images, (SHIFT,) * 4, value=-MEAN / STD)
    corners = torch.randint(0, 2 * SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack([x[:, i : i + size, j : j + size] for x, (i, j) in zip(wide, corners, strict=True)])


def main(path: str) -> None:
    network, accuracy = train()
    torch.save(network.state_dict(), path)
    print(f"{accuracy:.1f} % of the test images right; written: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["teacher.pth"])
