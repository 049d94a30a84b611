"""Training of one teacher, its loading as `teacher.checkpoint`, and the row of the table."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calibration.cases import Case
from cudfkd_jax.config import build, jobs, loading, networks, validate
from cudfkd_jax.data import Dataset, Split
from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.evaluation import verification
from cudfkd_jax.models import build_classifier
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runs.teacher import find_teacher, verify_teacher
from cudfkd_jax.runtime.devices import SINGLE, Axis, local_devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_files, torch_names

_ROOT = Path(__file__).parents[2]
_FEW, _SETTLING = 64, 40
_RATE = 0.1  # at batch 128
_FINE_TUNING_RATE = 0.001  # a hundredth of the training's


class Data(NamedTuple):
    """CIFAR-10 and the folder that it comes from."""

    directory: str
    dataset: Dataset


def load(directory: str) -> Data:
    """Reads both splits."""
    return Data(directory, build.dataset(_config(directory, "wrn16_2", ""), ("train", "test")))


def _config(directory: str, arch: str, checkpoint: str) -> Any:
    config = loading.load(f"{_ROOT / 'configs/cifar10_cpu.py'}:teacher={arch}")
    config.data.dir, config.teacher.checkpoint = directory, checkpoint
    validate.check(config)
    return config


def measure(case: Case, data: Data, steps: int, folder: Path) -> dict[str, Any]:
    """Trains a teacher and verifies it.

    Args:
        case: the teacher.
        data: training and test images.
        steps: training steps.
        folder: receives the file of weights.

    Returns:
        The row: accuracy in percent, the worst layer and its deviation on 512 and on 64 images, what happened.
    """
    file, trains = _ROOT / case.file, case.fine_tunes or not case.file
    if trains:
        start = _read(data.directory, case.arch, file) if case.file else None
        variables = train(case, data.dataset.splits["train"], steps, start)
        file = folder / "teacher.safetensors"
        torch_files.write_state_dict(file, torch_names.to_state_dict(variables))
    config = _config(data.directory, case.arch, str(file))
    source, test = jobs.teacher_source(config), data.dataset.splits["test"]
    teacher = find_teacher(source, folder)
    assert teacher
    network = networks.classifier(config, teacher.net)
    found = verification.verify(network, teacher.variables, test, padding=source.padding, flip=source.flip)
    few = Split(*(array[:: len(test.labels) // _FEW][:_FEW] for array in test))
    of_few = verification.verify(network, teacher.variables, few, padding=source.padding, flip=source.flip)
    said: list[str] = []
    try:
        verify_teacher(source, network, teacher, test, said.append)
    except UserError:
        outcome = "stopped"
    else:
        outcome = "warned" if any(text.startswith("warning") for text in said) else "accepted"
    return {
        "right": case.is_right,
        "steps": steps if trains else None,
        "acc1": round(found.accuracy, 1),
        "deviation": round(found.deviation, 4),
        "limit": round(found.limit, 4),
        "layer": found.layer,
        "deviation_64": round(of_few.deviation, 4),
        "limit_64": round(of_few.limit, 4),
        "outcome": outcome,
    }


def _read(directory: str, arch: str, file: Path) -> dict[str, Any]:
    teacher = find_teacher(jobs.teacher_source(_config(directory, arch, str(file))), Path())
    assert teacher
    return teacher.variables


def train(case: Case, split: Split, steps: int, start: dict[str, Any] | None) -> dict[str, Any]:
    """Trains the case's network with Nesterov SGD, in bfloat16.

    Args:
        case: the teacher.
        split: training images.
        steps: number of steps.
        start: the variables of a trained network that is fine-tuned; None initialises them.

    Returns:
        The network's variables.
    """
    dtype = jnp.bfloat16
    module = case.module(dtype=dtype) if case.module else build_classifier(case.arch, 10, dtype)
    network = Classifier(module, case.mean, case.std)
    # At the end the weights rest, until BatchNorm's averages have settled, as after a long training.
    moving = max(steps - _SETTLING, steps // 2)
    rate = optax.warmup_cosine_decay_schedule(0.0, _RATE * case.batch_size / 128, steps // 10, moving)
    if case.fine_tunes:
        rate = optax.constant_schedule(_FINE_TUNING_RATE)
    optimiser = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, 0.9, nesterov=True))
    devices = local_devices(1, bfloat16=True)
    key = jax.random.key(0)
    variables = start or network.init(key, split.images.shape[1:])
    state = devices.replicate(TrainState.create(variables, optimiser))
    step = functools.partial(_step, case=case, network=network, optimiser=optimiser, train=not case.fine_tunes)
    update = devices.compile(step)
    random = np.random.default_rng(0)
    for index in range(steps):
        rows = random.integers(0, len(split.labels), case.batch_size)
        images, labels = case.images(split.images[rows]), case.labels(split.labels[rows])
        state = update(state, images, labels, jax.random.fold_in(key, index))
    return jax.device_get(state.variables)


def _step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    case: Case,
    network: Classifier,
    optimiser: optax.GradientTransformation,
    train: bool,
    axis: Axis = SINGLE,
) -> TrainState:
    targets = jax.nn.one_hot(labels, 10)
    if case.augments:
        images = random_crop_flip(key, images, padding=4, flip=True)
    x = images.astype(jnp.float32) / 255
    if case.mixup:
        share = jax.random.beta(key, 1.0, 1.0)
        x, targets = (share * both + (1 - share) * both[::-1] for both in (x, targets))

    def objective(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs = network(variables, x, train=train, axis=axis)
        return jnp.mean(optax.softmax_cross_entropy(outputs.value, targets)), outputs.batch_stats

    gradients, batch_stats = jax.grad(objective, has_aux=True)(state.params)
    return state.update(gradients, batch_stats, optimiser)


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page with all rows, right teachers first."""
    lines = [_PAGE]
    for name, row in sorted(measured.items(), key=lambda item: (not item[1]["right"], item[0])):
        kind = "right" if row["right"] else "wrong"
        cells = (
            *(name, kind, row["steps"] or "", f"{row['acc1']:.1f}"),
            *(f"{row['deviation']:.3f} (limit {row['limit']:.3f})", row["layer"]),
            *(f"{row['deviation_64']:.3f} (limit {row['limit_64']:.3f})", row["outcome"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


_PAGE = """# Verification of right and wrong teachers

`python scripts/calibrate_verification.py --dir=data/cifar10_jpeg --out=results/verification`

Teachers of CIFAR-10, re-encoded as JPEG, after short trainings at batch 128, ResNets 32, in bfloat16 (`--steps`,
`--only`). Each was loaded from safetensors under PyTorch's names into the architecture of its first name (wrn16_2
for WRN), with CIFAR-10's mean and std. The deviation is that of the worst BatchNorm layer
(`evaluation/verification.py`).

LeakyReLU(0.01) is not noticed; it changes hardly anything. The ResNet-34 and 50, right and warned of, had 300 and
120 steps at batch 32. That is not the chance of the draw: in another such training of ResNet-34, in float32, the
deviation was 3.8 on augmented images, and 0.28 between two halves of them. In evaluation mode a deep network can
amplify small differences from layer to layer, which statistics of the batch bound in training. Longer trainings,
on the digits at batch 64, in float32 (`python -m cudfkd_jax.main --config=digits:teacher=ARCH --stage=teacher
--config.teacher.epochs=N --config.teacher.learning_rate=0.02`, then `--stage=evaluate`; limit 0.018, 359 images):

| teacher, right | epochs | acc@1 % | deviation | in training mode | on its training images | outcome |
|---|---|---|---|---|---|---|
| resnet34 | 5 | 98.6 | 0.001 | 0.000 | 0.001 | accepted |
| resnet50 | 8 | 98.3 | 0.209 | 0.004 | 5.7, in training mode 0.005 | warned, and told that it may be right |

The training mode does not decide in place of the evaluation mode: there WRN with LeakyReLU(0.1), 0.163 otherwise,
deviates by 0.006 alone, with GELU (0.078) by 0.036 and with ImageNet's mean and std (0.024) by 0.017 (trainings of
100 steps in float32). So it softens the warning.

| teacher | | steps | acc@1 % of 512 | deviation, 512 images | worst layer | deviation, 64 images | outcome |
|---|---|---|---|---|---|---|---|"""
