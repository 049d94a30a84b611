"""Trains a small classifier on scikit-learn's digits and distils it without them: a minute or two on a CPU.

python examples/distill_digits.py
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cudfkd_jax


class Net(nn.Module):
    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        for features in self.features:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def train(net, images, labels, steps=300):
    variables = net.init(jax.random.key(0), images[:1], train=False)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.01, steps))

    def loss(params, variables, x, y):
        logits, updates = net.apply(variables | {"params": params}, x, train=True, mutable="batch_stats")
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

    @jax.jit
    def step(variables, state, x, y):
        gradients, updates = jax.grad(loss, has_aux=True)(variables["params"], variables, x, y)
        changes, state = optimiser.update(gradients, state)
        return {"params": optax.apply_updates(variables["params"], changes)} | updates, state

    state, rng = optimiser.init(variables["params"]), np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        variables, state = step(variables, state, images[rows], labels[rows])
    return variables


def main():
    digits = load_digits()
    images = np.uint8(digits.images[..., None] * 255 / 16)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.2, random_state=0)
    config = cudfkd_jax.load_config("digits")
    config.distill.epochs = 40
    teacher = Net((64, 128))
    result = cudfkd_jax.distill(
        teacher=(teacher, train(teacher, x_train / np.float32(255), y_train)),
        student=Net((32, 64)),
        image_shape=(8, 8, 1),
        num_classes=10,
        config=config,
        test=(x_test, y_test),  # measures, and is not trained on
    )
    print(f"teacher acc@1 {result.summary['teacher']['acc1']:.2f} %")
    print(result)


if __name__ == "__main__":
    main()
