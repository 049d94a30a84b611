"""A residual network with GroupNorm, a teacher without BatchNorm.

Four methods distil it on the digits, from this folder, with

    cudfkd compare --config=digits --methods=cudfkd,dafl,dfad,zskt --config.teacher.module=group_norm:Teacher
"""

import flax.linen as nn


class Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm(8)(x))
        shortcut = x if x.shape[-1] == self.features else nn.Conv(self.features, (1, 1), self.stride)(y)
        y = nn.Conv(self.features, (3, 3), self.stride, use_bias=False)(y)
        y = nn.Conv(self.features, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(8)(y)))
        return y + shortcut


class Teacher(nn.Module):
    """WRN-16-2 with GroupNorm in place of BatchNorm."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        self.sow("intermediates", "stages", x)  # for ZSKT's attention term
        for features, stride in ((32, 1), (64, 2), (128, 2)):
            for block in range(2):
                x = Block(features, stride if block == 0 else 1)(x)
            self.sow("intermediates", "stages", x)
        x = nn.relu(nn.GroupNorm(8)(x)).mean((1, 2))
        return nn.Dense(10)(x)
