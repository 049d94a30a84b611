"""Settings from a folder of images: what it gives, what must be given, and that a run keeps them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cudfkd_jax import data, defaults
from cudfkd_jax.config import access, from_folder, identity, loading, validate
from cudfkd_jax.data import images as data_images
from cudfkd_jax.runs import evaluate, stages
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir

GIVEN = {"data.mean": (0.5,) * 3, "data.std": (0.25,) * 3}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from_folder._mean_and_std.cache_clear()


def _write(root: Path, splits=("train", "test"), classes=("ant", "bee", "cow"), count=4, size=(9, 10), channels=3):
    """Writes <split>/<class>/<i>.png of height and width `size`; returns the pixels of each split."""
    random, found = np.random.default_rng(0), {}
    for split in splits:
        found[split] = random.integers(0, 200, (len(classes), count, *size, channels), np.uint8)
        for name, pixels in zip(classes, found[split], strict=True):
            (root / split / name).mkdir(parents=True)
            for index, image in enumerate(pixels.squeeze(-1) if channels == 1 else pixels):
                Image.fromarray(image).save(root / split / name / f"{index}.png")
    return found


def _config(root: Path, arguments: str = "", **settings):
    config = loading.load(f"own_images{arguments}")
    config.update_from_flattened_dict({"data.dir": str(root), **settings})
    return config


def _refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_classes_mean_and_std_are_those_of_the_training_images(channels, tmp_path):
    train, said = _write(tmp_path, channels=channels)["train"] / 255, []
    config = _config(tmp_path)
    validate.check(config)
    from_folder.settle(config, say=said.append)
    assert (tuple(config.data.image_shape), config.data.num_classes) == ((9, 10, channels), 3)
    axes = (0, 1, 2, 3)
    np.testing.assert_allclose(config.data.mean, train.mean(axes), atol=6e-5)
    np.testing.assert_allclose(config.data.std, train.std(axes), atol=6e-5)
    assert said == [
        f"data: image_shape (9, 10, {channels}), num_classes 3, mean {tuple(config.data.mean)}, "
        f"std {tuple(config.data.std)}, from {tmp_path}"
    ]
    assert identity.result_settings(config, "distill")["data.mean"] == tuple(config.data.mean)


def test_what_is_given_stays(tmp_path):
    _write(tmp_path)
    config = _config(tmp_path, **GIVEN | {"data.image_shape": (8, 8, 3), "data.resize": True})
    from_folder.settle(config)
    assert (tuple(config.data.image_shape), config.data.num_classes, config.data.mean) == (
        (8, 8, 3),
        3,
        (0.5,) * 3,
    )


def test_a_test_part_is_enough_for_a_teacher_from_elsewhere(tmp_path):
    _write(tmp_path, splits=("test",))
    config = _config(tmp_path, **GIVEN | {"teacher.checkpoint": "teacher.pth"})
    from_folder.settle(config)
    assert (tuple(config.data.image_shape), config.data.num_classes) == ((9, 10, 3), 3)


@pytest.mark.parametrize("origin", [("checkpoint", "teacher.pth"), ("module", "torch:mine:make")])
@pytest.mark.parametrize("missing", GIVEN)
def test_mean_and_std_of_a_teacher_from_elsewhere_must_be_given(missing, origin, tmp_path, monkeypatch):
    _write(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    key, name = origin
    config = _config(tmp_path, **{**GIVEN, missing: (), f"teacher.{key}": name})
    text = _refused(from_folder.settle, config)
    assert text.startswith(f"{missing} is () and the teacher comes from {name}; expected the mean and std")
    assert text.endswith("Set --config.data.mean and --config.data.std")


def test_nothing_is_read_before_the_configuration_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "survey", lambda *_, **__: pytest.fail("the folder was read"))
    config = _config(tmp_path, **{"distill.temperature": 0.0})
    assert "distill.temperature=0.0 must be greater" in _refused(stages.run, config, "all", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_image_is_decoded_before_what_the_folder_gave_is_checked(tmp_path, monkeypatch):
    _write(tmp_path)
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("images were read"))
    config = _config(tmp_path, **{"generator.stages": 4})
    assert "generator.stages=4 makes images of at least 16x16" in _refused(from_folder.settle, config)


def test_images_of_several_sizes_need_one(tmp_path):
    _write(tmp_path)
    Image.new("RGB", (20, 12)).save(tmp_path / "train" / "bee" / "0.png")
    config = _config(tmp_path)
    text = _refused(from_folder.settle, config)
    assert "have several sizes, such as 10x9 and 20x12 pixels" in text and "--config.data.resize=true" in text
    config.data.update(image_shape=(9, 10, 3), resize=True)
    from_folder.settle(config)
    assert len(config.data.mean) == 3


def test_a_size_to_resize_to_must_be_given(tmp_path):
    _write(tmp_path)
    text = _refused(from_folder.settle, _config(tmp_path, **{"data.resize": True}))
    assert text.startswith("data.resize is True and data.image_shape is (); expected a size")


def test_a_folder_that_is_none_is_named(tmp_path):
    assert "needs a place to read: set --config.data.dir" in _refused(from_folder.settle, _config(""))
    assert "no folder" in _refused(from_folder.settle, _config(tmp_path))
    _write(tmp_path, classes=("ant",))
    assert "has 1 class folders, two at least are needed" in _refused(from_folder.settle, _config(tmp_path))


@pytest.mark.parametrize("key", access.FROM_FOLDER)
def test_other_sources_give_nothing(key, tmp_path):
    config = _config(tmp_path, **GIVEN | {"data.image_shape": (8, 8, 3), "data.num_classes": 3})
    config.data.source = "npz"
    config.update_from_flattened_dict({key: access.FROM_FOLDER[key]})
    assert key in _refused(validate.check, config)


def test_moments_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (300, 5, 4, 3), np.uint8)
    mean, std = data_images.mean_and_std(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_method_follows_the_classes_of_the_folder(tmp_path):
    _write(tmp_path)
    config = _config(tmp_path, ":method=zskt")
    from_folder.settle(config)
    assert config.distill.clip_norm == 15  # five times their number


def test_a_run_takes_over_what_it_began_with(tmp_path):
    """Where the training images are gone, which give mean and std."""
    root, run, said = tmp_path / "images", tmp_path / "run", []
    _write(root)
    assert "needs a teacher" in _refused(stages.run, _config(root), "distill", run, said.append)
    assert said.pop().startswith("data: image_shape (9, 10, 3), num_classes 3, mean (0.") and not said
    began = _config(root)
    from_folder.settle(began)
    workdir.write_config(run / "teacher", identity.result_settings(began, "teacher"), access.kept(began))
    shutil.rmtree(root / "train")
    assert "needs a teacher" in _refused(stages.run, _config(root), "distill", run, said.append)
    assert not said
    for arguments in ({"folder": run}, {}):
        goes_on = _config(root, **{} if arguments else {"teacher.checkpoint": str(run)})
        from_folder.settle(goes_on, **arguments)
        assert goes_on.data == began.data


def test_a_teacher_alone_is_measured_on_what_the_folder_gives(tmp_path):
    _write(tmp_path, splits=("test",))
    config, said = _config(tmp_path, **GIVEN | {"teacher.checkpoint": str(tmp_path / "no.pth")}), []
    assert "is neither a trained network" in _refused(evaluate.evaluate_teacher, config, said.append)
    assert said[0].startswith("data: image_shape (9, 10, 3), num_classes 3, from")


@pytest.mark.slow
def test_a_run_keeps_what_it_began_with(tmp_path):
    """A teacher trained on images of 9x10 pixels, and a student distilled where only the test images are left."""
    root, run = tmp_path / "images", tmp_path / "run"
    _write(root, count=8)

    def config(**settings):
        config = _config(root, ":teacher=wrn10_1,student=wrn10_1")
        defaults.train_for(config, epochs=1, batch_size=8)
        config.generator.update(latent_dim=8, width=4)
        config.distill.update(epochs=1, rounds_per_epoch=1, student_steps=2, batch_size=8)
        config.evaluation.batch_size = 16
        config.log.update(tensorboard=False, samples_every_epochs=0, report=False)
        config.teacher.verify = False
        config.update_from_flattened_dict(settings)
        return config

    stages.run(config(), "teacher", run, say=lambda text: None)
    first = json.loads((run / "teacher/config.json").read_text())["config"]
    assert first["data.image_shape"] == [9, 10, 3] and len(first["data.mean"]) == 3
    shutil.rmtree(root / "train")
    stages.run(config(), "distill", run, say=lambda text: None)
    second = json.loads((run / "config.json").read_text())["config"]
    assert {key: second[key] for key in access.FROM_FOLDER} == {key: first[key] for key in access.FROM_FOLDER}
