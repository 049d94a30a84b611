"""The optimisers and learning-rate schedules of a configuration."""

import optax
from ml_collections import ConfigDict


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns SGD as in PyTorch: weight decay, on every parameter, enters the gradient before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def cosine_learning_rate(base: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns ½·base·(1 + cos(π·epoch/epochs)), from `base` towards 0 with one value per epoch.

    Args:
        base: learning rate of epoch 0.
        epochs: epochs of the whole run; the rate is 0 from epoch `epochs` on.
        steps_per_epoch: number of steps per epoch.

    Returns:
        A schedule of the step (PyTorch's CosineAnnealingLR with T_max = epochs, stepped once per epoch).
    """
    by_epoch = optax.cosine_decay_schedule(base, epochs)
    return lambda step: by_epoch(step // steps_per_epoch)


def student_optimiser(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimiser of a student in data-free distillation."""
    d = config.distill
    if d.optimiser == "adam":
        optimiser = optax.chain(optax.add_decayed_weights(d.weight_decay), optax.adam(learning_rate))
    else:
        optimiser = sgd(learning_rate, momentum=d.momentum, weight_decay=d.weight_decay)
    return optax.chain(optax.clip_by_global_norm(d.clip_norm), optimiser) if d.clip_norm else optimiser


def generator_optimiser(config: ConfigDict) -> optax.GradientTransformation:
    """Returns Adam for the generator, at a constant learning rate or with a cosine schedule over the epochs."""
    g, d = config.generator, config.distill
    learning_rate: optax.ScalarOrSchedule = g.learning_rate
    if g.schedule == "cosine":
        steps_per_epoch = d.rounds_per_epoch * d.synthesis_steps
        learning_rate = cosine_learning_rate(g.learning_rate, d.epochs, steps_per_epoch)
    return optax.adam(learning_rate, b1=g.beta1, b2=g.beta2)
