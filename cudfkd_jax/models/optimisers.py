"""Optimisers and learning-rate schedules as PyTorch defines them."""

import optax


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns SGD as in PyTorch: weight decay, on every parameter, enters the gradient before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def cosine_learning_rate(base: float, epochs: int, steps_per_epoch: int, *, end: float = 0.0) -> optax.Schedule:
    """Returns end + ½·(base − end)·(1 + cos(π·epoch/epochs)), from `base` towards `end`, one value per epoch.

    Args:
        base: learning rate of epoch 0.
        epochs: epochs of the whole run; the rate is `end` from epoch `epochs` on.
        steps_per_epoch: number of steps per epoch.
        end: the learning rate after the last epoch.

    Returns:
        A schedule of the step (PyTorch's CosineAnnealingLR with T_max = epochs, stepped once per epoch).
    """
    by_epoch = optax.cosine_decay_schedule(base, epochs, alpha=end / base)
    return lambda step: by_epoch(step // steps_per_epoch)
