"""Tests of TensorBoard events: groups of tags, pictures, and what a resumed run drops."""

import io
import json

import numpy as np
import pytest
from helpers import tensorboard_events, tensorboard_values
from PIL import Image

from cudfkd_jax.training.events import Events, tag
from cudfkd_jax.training.progress import Progress


def _record(epoch, **more):
    times = {"seconds": 1.0, "evaluation_seconds": 0.5}
    return {"epoch": epoch, "step": 10 * epoch, "acc1": 50.0 + epoch, **times, **more}


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("acc1", "test"),
        ("loyalty_released", "test"),
        ("agree1_synthetic", "synthetic"),
        ("alpha_adv", "schedule"),
        ("learning_rate", "schedule"),
        ("mean_v", "curriculum"),
        ("majorised", "convergence"),
        ("images_per_s", "time"),
        ("student_loss", "train"),
        ("train_acc1", "train"),
        ("a_term_of_another_method", "train"),
    ],
)
def test_a_value_keeps_its_name_under_a_group(key, group):
    assert tag(key) == f"{group}/{key}"


def test_every_value_of_a_real_run_has_a_group(finished_run):
    record = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"acc1", "lambda", "mean_v", "seconds", "student_loss"} <= record.keys()
    groups = {tag(key).split("/")[0] for key in record}
    assert groups == {"train", "test", "schedule", "curriculum", "time"}
    losses = {key for key in record if key.endswith(("_loss", "_norm"))}
    assert losses and {tag(key).split("/")[0] for key in losses} == {"train"}


def test_scalars_and_pictures_are_written_by_epoch(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "grey.png")
    with Progress("distill", epochs=2, steps_per_epoch=10, first_step=0, tensorboard=tmp_path / "tb") as progress:
        progress.epoch(_record(1, student_loss=2.0))
        progress.pictures(1, {"samples/epoch": tmp_path / "grey.png"})
        progress.epoch(_record(2))
        progress.pictures(2, {})
    found = tensorboard_values(tmp_path / "tb")
    scalars = {key: value.simple_value for key, value in found.items() if key[0] != "samples/epoch"}
    times = {(f"time/{key}", epoch): value for epoch in (1, 2) for key, value in
             (("step", 10.0 * epoch), ("seconds", 1.0), ("evaluation_seconds", 0.5))}  # fmt: skip
    assert scalars == {("test/acc1", 1): 51.0, ("test/acc1", 2): 52.0, ("train/student_loss", 1): 2.0, **times}
    with Image.open(io.BytesIO(found["samples/epoch", 1].image.encoded_image_string)) as picture:
        np.testing.assert_array_equal(np.asarray(picture)[..., 0], np.arange(12).reshape(3, 4))


def test_a_resumed_run_drops_the_epochs_after_its_checkpoint(tmp_path):
    for first in (1, 2):
        events = Events(tmp_path, first)
        events.scalars(_record(first))
        events.close()
    assert [event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")][-1] == 2


def test_a_run_without_tensorboard_writes_nothing(tmp_path):
    with Progress("distill", epochs=2, steps_per_epoch=10, first_step=0, tensorboard=None) as progress:
        progress.epoch(_record(1))
        progress.pictures(1, {"samples/epoch": tmp_path / "none.png"})
    assert list(tmp_path.iterdir()) == []
