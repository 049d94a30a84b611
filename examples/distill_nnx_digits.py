"""Trains a small Flax NNX classifier on scikit-learn's digits and distils it without them into another.

python examples/distill_nnx_digits.py
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cudfkd_jax


class Net(nnx.Module):
    def __init__(self, features: tuple[int, ...] = (64, 128), *, rngs: nnx.Rngs):
        pairs = list(zip((1, *features), features, strict=False))
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), use_bias=False, rngs=rngs) for a, b in pairs)
        self.norms = nnx.List(nnx.BatchNorm(b, momentum=0.9, rngs=rngs) for _, b in pairs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(features[-1], 10, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


def student(rngs: nnx.Rngs):
    return Net((32, 64), rngs=rngs)


def train(net, images, labels, steps=300):
    optimiser = nnx.Optimizer(net, optax.adam(optax.cosine_decay_schedule(0.01, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimiser, x, y):
        def loss(net):
            return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

        optimiser.update(net, nnx.grad(loss)(net))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        step(net, optimiser, images[rows], labels[rows])
    return net


def main():
    digits = load_digits()
    images = np.uint8(digits.images[..., None] * 255 / 16)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.2, random_state=0)
    config = cudfkd_jax.load_config("digits")
    config.distill.epochs = 40
    result = cudfkd_jax.distill(
        teacher=train(Net(rngs=nnx.Rngs(0)), x_train / np.float32(255), y_train),  # its mode does not matter
        student=student,
        image_shape=(8, 8, 1),
        num_classes=10,
        config=config,
        test=(x_test, y_test),  # measures, and is not trained on
    )
    print(f"teacher acc@1 {result.summary['teacher']['acc1']:.2f} %")
    print(result)


if __name__ == "__main__":
    main()
