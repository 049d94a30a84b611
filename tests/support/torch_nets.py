"""Small PyTorch networks; not importable without torchax, so that `pytest.importorskip` skips their tests."""

import importlib.util

import torch
from torch import nn
from torch.nn import functional

if importlib.util.find_spec("torchax") is None:  # not imported here: `torch_calls.load` makes it fit PyTorch
    raise ModuleNotFoundError("torchax is not installed: make torchax")


class Small(nn.Module):
    """Every kind of layer that is treated on its own: BatchNorm of two ranks, without parameters and shared."""

    def __init__(self, channels: int = 1, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(6, affine=False, eps=1e-3)
        self.hidden = nn.Linear(6, 12)
        self.bn3 = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.BatchNorm2d(3)
        self.fc = nn.Linear(12, classes)
        self.register_buffer("scale", torch.tensor(0.7))
        self.register_buffer("order", torch.arange(12).flip(0))
        self.register_buffer("shift", torch.linspace(0, 1, 12), persistent=False)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.relu(self.bn2(self.conv2(x))) + self.bn2(x)
        x = functional.silu(self.bn3(self.hidden(x.mean((2, 3)))))
        return self.fc(self.drop(x[:, self.order] * self.scale + self.shift))


class Attention(nn.Module):
    """A transformer of one block, without BatchNorm, that returns its logits in a field."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 4, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return Output(self.head(x.mean(1)))


class Output(dict):
    def __init__(self, logits):
        super().__init__(logits=logits)
        self.logits = logits


class Wrapped(nn.Module):
    """A network under one attribute that normalises its images itself."""

    def __init__(self):
        super().__init__()
        self.net = Normalised()

    def forward(self, x):
        return self.net(x)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.25))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc((x - self.mean).flatten(1))


class Branches(nn.Module):
    """Chooses by the values of its input, which no traced program can."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), Choice())
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.inner(x))


class Choice(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Borrowed(nn.Module):
    """A BatchNorm whose parameters are computed, and one that is called by its function."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        bn, plain = self.bn, self.plain
        x = functional.batch_norm(
            self.conv(x), bn.running_mean, bn.running_var, 2 * bn.weight, bn.bias, eps=bn.eps
        )
        x = functional.batch_norm(x, plain.running_mean, plain.running_var, plain.weight, plain.bias)
        return functional.linear(weight=self.fc.weight, bias=self.fc.bias, input=x.mean((2, 3)))


class NoStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class NotLogits(nn.Module):
    def forward(self, x):
        return {"boxes": x}


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(x + 0.01 * torch.randn(x.shape, device=x.device))


def wants_arguments(width):
    return nn.Linear(width, 10)


def make(seed: int = 0) -> nn.Module:
    """Returns a `Small` with random weights and statistics, the same for a seed."""
    with torch.random.fork_rng(devices=[]):  # importing torchax breaks the default, all devices
        torch.manual_seed(seed)
        network = Small()
    return randomise_statistics(network, torch.Generator().manual_seed(seed))


def randomise_statistics(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draws the parameters and statistics of BatchNorm, which begin as constants."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return network
