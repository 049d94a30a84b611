"""Tests of distillation from Python."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import user_nets
from helpers import snapshot

import cudfkd_jax
from cudfkd_jax.config import loading, precision
from cudfkd_jax.data import load
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import api, stages
from cudfkd_jax.runs.result import Result
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import weights

SHAPE = (8, 8, 1)


def _settings():
    config = tiny.get_config()
    config.distill.epochs = 1
    return config


def _teacher(module=None):
    module = module or user_nets.Plain()
    return module, Classifier(module, (0.3,), (0.3,)).init(jax.random.key(0), SHAPE)


def _arguments(**changes):
    arguments = {
        "teacher": _teacher(),
        "student": user_nets.Training(),
        "image_shape": SHAPE,
        "num_classes": 10,
        "mean": [0.3],
        "std": [0.3],
        "config": _settings(),
    }
    return arguments | changes


@pytest.fixture(scope="module", name="digits")
def _digits():
    data = load("digits", name="digits", directory="", image_shape=SHAPE, num_classes=10, splits=["test"])
    return data.splits["test"]


@pytest.fixture(scope="module", name="without_data")
def _without_data(tmp_path_factory):
    """A result without test images and without a workdir, and the folder for temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        return cudfkd_jax.distill(**_arguments()), folder


@pytest.mark.long
def test_without_data_the_student_is_measured_on_synthetic_images_and_nothing_is_left(without_data):
    result, folder = without_data
    logits = user_nets.Training().apply(result.student.variables, jnp.zeros((3, *SHAPE)), training=False)
    assert logits.shape == (3, 10)
    assert "agree1_synthetic" in result.metrics and not {"acc1_last", "agree1"} & result.metrics.keys()
    assert result.summary["student"] == result.metrics
    assert list(folder.iterdir()) == []


class _Epochs(cudfkd_jax.Callback):
    def __init__(self):
        self.seen = []

    def on_epoch_end(self, state, history):
        self.seen.append(len(history))
        return ()


def _check_result(result, digits, folder):
    """Checks what a result offers beyond its values."""
    logits = result.predict(digits.images)
    assert 100 * np.mean(logits.argmax(1) == digits.labels) == pytest.approx(result.metrics["acc1_last"])
    assert result.predict(digits.images[:0]).shape == (0, 10)
    with pytest.raises(UserError, match=r"images are float64 .*; expected uint8 \[N, \*\(8, 8, 1\)\]"):
        result.predict(digits.images / 255)
    assert [record["epoch"] for record in result.history] == [1]
    acc1 = result.metrics["acc1_last"]
    assert repr(result).startswith("Result(user_nets:Training, ") and f"acc@1 {acc1:.2f} %" in repr(result)
    assert "student" in result._repr_html_()
    saved = weights.load_net(result.save(folder / "saved"))
    assert saved.sha256 == result.student.sha256
    with pytest.raises(UserError, match="holds something else than a network"):
        result.save(folder)
    shutil.rmtree(folder / "saved")


def test_a_result_whose_files_were_not_kept_says_so():
    result = Result(None, {}, {}, [], None, None)
    for call in (result.report, lambda: result.export("orbax")):
        with pytest.raises(UserError, match="distill\\(\\) kept none; pass it workdir="):
            call()


def test_a_finished_run_is_reported_and_exported(run_copy):
    result = Result(weights.load_net(run_copy / "student"), {}, {}, [], None, run_copy)
    (run_copy / "report.html").unlink()
    assert result.report() == run_copy / "report.html" and result.report().exists()
    assert result.export("orbax") == run_copy / "export/orbax/student"
    with pytest.raises(UserError, match=r"unknown format 'orbx' \(did you mean 'orbax'\?\)"):
        result.export("orbx")


def test_a_teacher_is_read_from_the_path_of_a_run_or_a_file(finished_run):
    config = tiny.get_config()
    for path in (finished_run, str(finished_run / "teacher/net")):
        network, net, variables = api._teacher(path, config, print)
        assert weights.digest(variables) == weights.load_net(finished_run / "teacher/net").sha256
        assert (net.arch, network.mean) == (tiny.NET, (0.3,)) and config.teacher.checkpoint == ""


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"teacher\.checkpoint=.*nowhere is neither a trained network"):
        cudfkd_jax.distill(**_arguments(teacher=tmp_path / "nowhere", workdir=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_package_shows_its_public_names():
    assert dir(cudfkd_jax) == sorted(cudfkd_jax.__all__)
    assert all(getattr(cudfkd_jax, name) is not None for name in cudfkd_jax.__all__)


def test_networks_are_built_with_the_dtype_that_auto_stands_for(monkeypatch):
    """As from the command line; the dtype is recorded, so that a resumed run has the same networks."""
    begun = []

    def run_pair(config, folder, pair, *more, **options):
        begun.append((config.compute_dtype, pair))
        raise KeyboardInterrupt

    monkeypatch.setattr(precision, "_suited", lambda devices: "bfloat16")
    monkeypatch.setattr(stages, "run_pair", run_pair)
    config = _settings()
    config.compute_dtype = "auto"
    with pytest.raises(KeyboardInterrupt):
        cudfkd_jax.distill(**_arguments(student="wrn10_1", config=config))
    ((dtype, pair),) = begun
    assert dtype == "bfloat16" and pair.student.module.dtype == jnp.bfloat16


@pytest.fixture(scope="module", name="measured")
def _measured(digits, tmp_path_factory):
    """A run in a workdir with test images: its arguments and its result."""
    epochs = _Epochs()
    arguments = _arguments(workdir=tmp_path_factory.mktemp("measured") / "run", test=digits)
    result = cudfkd_jax.distill(**arguments, callbacks=[epochs])
    assert epochs.seen == [1]
    return arguments, result


@pytest.mark.long
def test_test_images_only_measure(measured, digits, without_data):
    arguments, with_data = measured
    assert {"acc1_last", "agree1", "loyalty"} <= with_data.metrics.keys()
    without, _ = without_data
    jax.tree.map(np.testing.assert_array_equal, with_data.student.variables, without.student.variables)
    workdir = arguments["workdir"]
    before = snapshot(workdir)
    again = cudfkd_jax.distill(**arguments)  # already complete
    assert again.student.sha256 == with_data.student.sha256 and snapshot(workdir) == before
    assert json.loads((workdir / "summary.json").read_text()) == again.summary
    _check_result(again, digits, workdir.parent)
    images, labels = digits
    cudfkd_jax.distill(**arguments | {"test": [images, labels[:, None].astype(np.int64)]})
    with pytest.raises(UserError, match="holds a run that began with other test images"):
        cudfkd_jax.distill(**arguments | {"test": (images[::-1], labels)})


def test_a_workdir_resumes_only_with_the_same_networks(measured):
    arguments, _ = measured
    before = snapshot(arguments["workdir"])
    for changes in ({"student": user_nets.NoMode()}, {"teacher": _teacher(user_nets.Training())}):
        with pytest.raises(UserError, match="holds a run of another configuration"):
            cudfkd_jax.distill(**arguments | changes)
    assert snapshot(arguments["workdir"]) == before


@pytest.mark.slow  # as far as to its first step in test_a_teacher_is_verified_on_the_test_images
def test_a_function_of_jax_numpy_is_a_teacher():
    _, variables = _teacher()

    def teacher(x):
        return user_nets.Plain().apply(variables, x, train=False)

    result = cudfkd_jax.distill(**_arguments(teacher=teacher))
    assert "agree1_synthetic" in result.metrics


@pytest.mark.parametrize(
    ("mean", "channels", "expected"),
    [
        (0.5, 3, (0.5,) * 3),
        (np.float32(0.5), 1, (0.5,)),
        (np.array([0.25, 0.5, 1]), 3, (0.25, 0.5, 1.0)),
        (None, 1, (0,)),
    ],
)
def test_a_mean_is_a_number_or_one_per_channel(mean, channels, expected):
    config = api._settings(_settings(), (8, 8, channels), 10, mean, 0.5, "wrn10_1")
    assert config.data.mean == expected and config.data.std == (0.5,) * channels


def test_nested_settings_are_those_by_key():
    nested = {"method": "dafl", "distill": {"epochs": 3}, "generator": {"latent_dim": 7}, "seed": 5}
    flat = {"method": "dafl", "distill.epochs": 3, "generator.latent_dim": 7, "seed": 5}
    assert loading.from_settings(nested).to_dict() == loading.from_settings(flat).to_dict()
    assert loading.from_settings(nested).distill.epochs == 3


def test_settings_by_key():
    config = _settings()
    keys = ("generator.width", "generator.latent_dim", "distill.epochs", "distill.rounds_per_epoch")
    keys += ("distill.student_steps", "distill.batch_size", "distill.loss", "log.tensorboard")
    given = {key: config[key.split(".")[0]][key.split(".")[1]] for key in keys}
    result = cudfkd_jax.distill(**_arguments(config=given))
    assert result.summary["epochs"] == 1


def _numpy_teacher(x):
    return np.asarray(x).mean((1, 2)) @ np.ones((1, 10))


def _callback_teacher(x):
    return jax.pure_callback(_numpy_teacher, jax.ShapeDtypeStruct((x.shape[0], 10), jnp.float32), x)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher": _numpy_teacher}, "the teacher function has no gradients in JAX"),
        ({"teacher": _callback_teacher}, "the teacher function has no gradients in JAX"),
        ({"teacher": (user_nets.Plain(), {})}, "the teacher cannot be applied to images"),
        ({"teacher": (user_nets.Plain(), _teacher(user_nets.Training())[1])}, "the teacher cannot be applied"),
        ({"teacher": (user_nets.Plain(7), _teacher(user_nets.Plain(7))[1])}, "the teacher returns shape .2, 7."),
        ({"student": user_nets.NotLogits()}, "the student returns a dict"),
        ({"student": "wrn11_1"}, "unknown model 'wrn11_1'"),
        ({"num_classes": 1}, "data.num_classes=1 must be at least 2"),
        ({"mean": [0.3, 0.3]}, "data.mean"),
        ({"std": [0.0]}, "data.std"),
        ({"mean": 127.5}, "data.mean=.127.5,. without test images; expected numbers in .0, 1."),
        ({"image_shape": (8, 8)}, "data.image_shape"),
        (
            {"config": {"distill.epoch": 3}},
            "unknown configuration key 'distill.epoch'; the nearest are distill.epochs",
        ),
        ({"config": {"distill.epochs": "x"}}, "config: .*'epochs'"),
        ({"config": {"distill": {"epoch": 3}}}, "unknown configuration key 'distill.epoch'; the nearest"),
        ({"config": {"distill": 3}}, "unknown configuration key 'distill'; the nearest"),
        ({"mean": "grey"}, "mean='grey'; expected a number, or one per channel"),
        ({"mean": [None]}, "data.mean"),
        ({"test": (np.zeros((3, 9, 9, 1), np.uint8), np.zeros(3, int))}, "test: images are"),
        ({"test": (np.zeros((3, *SHAPE), np.float32), np.zeros(3, int))}, "test: images are float32"),
        ({"test": (np.zeros((3, *SHAPE), np.uint8), np.full(3, 10))}, "test: labels run from 10 to 10"),
        ({"test": (np.zeros((3, *SHAPE), np.uint8), np.zeros((3, 10), int))}, r"test: labels are int64 .3, 10."),
        ({"test": (np.zeros((3, 1, 8, 8), np.uint8), np.zeros(3, int))}, r"test: .*, channels first; expected"),
        ({"test": np.zeros((3, *SHAPE), np.uint8)}, r"test is one ndarray .3, 8, 8, 1.; expected a pair"),
        ({"test": (np.ones((3, *SHAPE), np.uint8), np.zeros(3, int))}, "test: no image has an intensity above 1"),
        ({"test": (np.zeros((3, *SHAPE), np.uint8),)}, "test is a tuple of 1; expected a pair"),
        ({"test": ()}, "test is a tuple of 0; expected a pair"),
        ({"test": {"images": 1, "labels": 2}}, "test is a dict of 2; expected a pair"),
        ({"test": 3}, "test is of type int; expected a pair"),
        ({"test": ([[1, 2], [3]], [0, 1])}, "test: images or labels are no arrays"),
        ({"test": (None, None)}, "test: images are object"),
    ],
)
def test_arguments_that_do_not_fit(changes, text, tmp_path):
    with pytest.raises(UserError, match=text) as caught:
        cudfkd_jax.distill(**_arguments(workdir=tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_verified_on_the_test_images(digits, tmp_path, monkeypatch, capsys):
    module, variables = _teacher()

    def distill(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.distill, "distill", distill)
    with pytest.raises(KeyboardInterrupt):
        cudfkd_jax.distill(**_arguments(test=digits))
    assert re.match(r"teacher: \d+\.\d % of 359 test images right; BatchNorm", capsys.readouterr().out)
    with pytest.raises(UserError, match="the teacher returns probabilities"):
        cudfkd_jax.distill(
            **_arguments(
                teacher=lambda x: jax.nn.softmax(module.apply(variables, x, train=False)),
                test=digits,
                workdir=tmp_path / "run",
            )
        )
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_nan_is_refused():
    module, variables = _teacher()
    variables = jax.tree.map(lambda x: x * np.nan, variables)
    with pytest.raises(UserError, match=r"teacher: (params|batch_stats)/.* holds NaN"):
        cudfkd_jax.distill(**_arguments(teacher=(module, variables)))


def test_the_package_offers_its_functions_and_no_others():
    assert cudfkd_jax.load_config("tests/support/tiny.py").distill.epochs == 4
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        cudfkd_jax.distil  # noqa: B018
