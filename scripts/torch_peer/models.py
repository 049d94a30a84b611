"""The package's classifiers in PyTorch, with the parameter names of users' files; tests compare them too."""

import torch
from torch import nn
from torch.nn import functional

_BLOCKS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
_LARGE = "_imagenet"  # ends the names of torchvision's ResNets
_WIDTHS = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}


def build(arch: str, num_classes: int, channels: int = 3) -> nn.Module:
    """Returns the network called `arch`: images [B, C, H, W] -> logits [B, num_classes]."""
    if (small := arch.removesuffix(_LARGE)) in _BLOCKS:
        kind = LargeResNet if arch.endswith(_LARGE) else ResNet
        return kind(_BLOCKS[small], 3 if small == "resnet50" else 2, num_classes, channels)
    if arch in _WIDTHS:
        return VGG(_WIDTHS[arch], num_classes, channels)
    depth, width = map(int, arch.removeprefix("wrn").split("_"))
    return WideResNet(depth, width, num_classes, channels)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class ResidualBlock(nn.Module):
    """A residual block of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 with four times the filters."""

    def __init__(self, inputs: int, filters: int, stride: int, convolutions: int, shortcut: str = "shortcut"):
        super().__init__()
        self.shortcut_name = shortcut
        if convolutions == 2:
            outputs = filters
            self.conv1, self.conv2 = _conv(inputs, filters, 3, stride), _conv(filters, filters, 3)
        else:
            outputs = 4 * filters
            self.conv1, self.conv2 = _conv(inputs, filters, 1), _conv(filters, filters, 3, stride)
            self.conv3, self.bn3 = _conv(filters, outputs, 1), nn.BatchNorm2d(outputs)
        self.bn1, self.bn2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)
        changes = stride > 1 or inputs != outputs
        layers = (_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else ()
        self.add_module(shortcut, nn.Sequential(*layers))
        self.outputs = outputs

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(functional.relu(y)))
        return functional.relu(y + getattr(self, self.shortcut_name)(x))


class ResNet(nn.Module):
    """A ResNet for small images."""

    head, shortcut, stem = "linear", "shortcut", (3, 1)

    def __init__(self, blocks: tuple[int, ...], convolutions: int, num_classes: int, channels: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, 64, *self.stem), nn.BatchNorm2d(64)
        width = 64
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                layers.append(ResidualBlock(width, 64 << stage, stride, convolutions, self.shortcut))
                width = layers[-1].outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.add_module(self.head, nn.Linear(width, num_classes))

    def pool(self, x):
        return x

    def forward(self, x):
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.head)(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class LargeResNet(ResNet):
    """torchvision's ResNet: 7x7 stem of stride 2 and max pool."""

    head, shortcut, stem = "fc", "downsample", (7, 2)

    def pool(self, x):
        return functional.max_pool2d(x, 3, 2, 1)


class VGG(nn.Module):
    def __init__(self, widths: tuple[tuple[int, ...], ...], num_classes: int, channels: int):
        super().__init__()
        for block, block_widths in enumerate(widths):
            layers: list[nn.Module] = []
            for width in block_widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            setattr(self, f"block{block}", nn.Sequential(*layers))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        pooled = 4 if x.shape[2] == 64 else 3
        for block in range(5):
            x = getattr(self, f"block{block}")(x)
            if block < pooled:
                x = functional.max_pool2d(x, 2)
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.convShortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        activated = functional.relu(self.bn1(x))
        y = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class WideGroup(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *(WideBlock(outputs if i else inputs, outputs, 1 if i else stride) for i in range(count))
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, num_classes: int, channels: int):
        super().__init__()
        count, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = _conv(channels, 16, 3)
        self.block1 = WideGroup(count, widths[0], widths[1], 1)
        self.block2 = WideGroup(count, widths[1], widths[2], 2)
        self.block3 = WideGroup(count, widths[2], widths[3], 2)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], num_classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Randomises the scales, biases and statistics of all BatchNorm layers; returns the net in eval mode."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_(0.0, 0.2)
    return net.eval()
