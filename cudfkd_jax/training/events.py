"""TensorBoard events of a stage: the values of its records in groups, and pictures; see `docs/tensorboard.md`."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter  # imports PyTorch if installed, which takes a second

from cudfkd_jax.storage.records import Record

_GROUPS = {
    "test": ("acc1", "acc5", "agree1", "loyalty", "loyalty_released"),
    "synthetic": ("agree1_synthetic", "loyalty_synthetic", "loyalty_released_synthetic"),
    "schedule": ("alpha_adv", "lambda", "learning_rate"),
    "curriculum": ("mean_v", "share_v_below_half", "difficulty", "regulariser_g"),
    "convergence": ("latent_objective", "majorised", "minimised", "descended"),
    "time": ("step", "seconds", "evaluation_seconds", "images_per_s"),
}
_GROUP = {key: group for group, keys in _GROUPS.items() for key in keys}


def tag(key: str) -> str:
    """Returns the tag of a value: its name in `metrics.jsonl` under its group, `train/` unless it has another."""
    return f"{_GROUP.get(key, 'train')}/{key}"


class Events:
    """The event files of a stage; the step of every event is an epoch, counted from 1."""

    def __init__(self, folder: Path, first_epoch: int):
        """Opens a new file in which TensorBoard drops earlier events from `first_epoch` on."""
        # The writer's own names tell seconds apart, and a file of the same name would be overwritten.
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch, filename_suffix=suffix)

    def scalars(self, record: Record) -> None:
        """Writes the values of an epoch's record."""
        for key, value in record.items():
            if key != "epoch":
                self._writer.add_scalar(tag(key), value, record["epoch"])
        self._writer.flush()

    def pictures(self, epoch: int, pictures: Mapping[str, Path]) -> None:
        """Writes PNG files by tag."""
        for name, path in pictures.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(name, pixels, epoch, dataformats="HWC")
        if pictures:
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
