"""Tests of the verification of teachers: what a right and a wrong one look like, and what happens then."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import tiny

import cudfkd_jax
from cudfkd_jax import main
from cudfkd_jax.config import build
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.evaluation import verification
from cudfkd_jax.evaluation.verification import Verification
from cudfkd_jax.models.capture import BN, FEATURES, BNStatistics, batch_norm_layers
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import outlook, stages, timing
from cudfkd_jax.runs.teacher import verify_teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_files, torch_names, weights
from cudfkd_jax.storage.weights import Trained

RESULTS = Path(__file__).parents[2] / "results"
RIGHT = Verification(images=360, accuracy=95.0, chance=20.0, deviation=0.01, layer="bn1")


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_deviation_is_relative(scale):
    mean, std = scale * np.array([1.0, -2.0]), scale * np.array([1.0, 2.0])
    same = BNStatistics(mean, std**2, mean, std**2)
    assert verification.relative_deviation(same) == 0
    moved = same._replace(mean=mean + scale * np.array([0.5, 0.0]), var=(1.5 * std) ** 2)
    assert verification.relative_deviation(moved) == pytest.approx((0.25 + 0.25 * 5) / 10)


def test_limits_are_wider_for_few_images():
    assert RIGHT._replace(images=64).limit > RIGHT.limit > 0.015
    assert not RIGHT.is_strange and not RIGHT.is_guessing
    assert RIGHT._replace(deviation=0.2).is_strange and RIGHT._replace(accuracy=10.0).is_guessing


@pytest.mark.parametrize(
    ("num_classes", "images", "guesses", "learned"),
    [(10, 512, 18.9, 19.1), (100, 512, 2.8, 2.9), (2, 512, 58.0, 62.0), (2, 156, 65.0, 70.0), (2, 10, 70.0, 80.0)],
)
def test_what_is_near_chance(num_classes, images, guesses, learned):
    """Of two classes, too, a teacher of moderate accuracy is not taken for a guessing one."""
    assert guesses < verification.chance_limit(num_classes, images) < learned


@pytest.fixture(scope="module", name="test")
def _test():
    return build.dataset(tiny.get_config(), ("test",)).splits["test"]


@pytest.fixture(scope="module", name="taught")
def _taught():
    """Returns a function from mean and std to a network, and variables with which it has learned digits at 0.3.

    Its convolutions are random. Statistics and linear layer are those of the training images, without a training.
    """
    train, module = build.dataset(tiny.get_config(), ("train",)).splits["train"], nets.TinyNet(64)
    network = functools.partial(Classifier, module)

    @jax.jit
    def passed(images):
        variables = network((0.3,), (0.3,)).init(jax.random.key(0), images.shape[1:])
        return variables, network((0.3,), (0.3,))(variables, images, train=True, capture=(BN, FEATURES))

    variables, found = jax.device_get(passed(train.images / np.float32(255)))
    inputs = np.c_[found.features, np.ones(len(train.labels))].astype(np.float32)
    *kernel, bias = np.linalg.lstsq(inputs, np.eye(10, dtype=np.float32)[train.labels])[0]
    statistics = {f"BatchNorm_{i}": {"mean": each.mean, "var": each.var} for i, each in enumerate(found.bn)}
    linear = {"kernel": np.array(kernel), "bias": bias}
    return network, {"params": {**variables["params"], "Dense_0": linear}, "batch_stats": statistics}


def _verify(taught, test, mean=0.3, std=0.3):
    network, variables = taught
    return verification.verify(network((mean,), (std,)), variables, test, padding=1, flip=False)


def test_another_normalisation_deviates(taught, test):
    right = _verify(taught, test)
    assert right.images == 359 and right.accuracy > 90 and not right.is_strange, right
    assert _verify(taught, test, mean=0.0, std=1.0).is_strange


def test_passes_over_large_images_find_what_one_finds(taught, test, monkeypatch):
    whole = _verify(taught, test, mean=0.2)
    monkeypatch.setattr(verification, "_AT_ONCE", 8 * 8 * 90)
    parts = _verify(taught, test, mean=0.2)
    assert parts._replace(deviation=0.0, in_training=0.0) == whole._replace(deviation=0.0, in_training=0.0)
    assert parts.deviation == pytest.approx(whole.deviation, rel=1e-3) and whole.deviation > 0.01


@pytest.mark.parametrize(("images", "pixels", "passes"), [(512, 64, 1), (512, 224, 16), (359, 128, 3)])
def test_passes_are_of_one_size_if_few_more_do(images, pixels, passes):
    assert verification._passes((images, pixels, pixels, 3)) == passes


def test_few_of_huge_images_are_looked_at(taught, test, monkeypatch):
    monkeypatch.setattr(verification, "_PIXELS", 8 * 8 * 40)
    assert _verify(taught, test).images == 40


def test_the_largest_deviation_on_images_alone(taught, test):
    network, variables = taught[0]((0.3,), (0.3,)), taught[1]
    images = test.images.astype(np.float32) / 255
    right, layer = verification.largest_deviation(network, variables, images)
    wrong, _ = verification.largest_deviation(network, variables, 1 - images)
    assert right < 0.05 < wrong and layer in batch_norm_layers(variables)


def _init(network):
    return jax.jit(lambda: network.init(jax.random.key(0), (8, 8, 1)))()


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize(("share", "is_strange"), [(1.0, False), (2 / 3, False), (0.3, True)])
def test_statistics_of_mixed_images_are_known(test, share, is_strange):
    """Shares λ of mixup, uniform in [0, 1], leave E[λ² + (1 − λ)²] = 2/3 of the variance."""
    network = Classifier(Normalised(), (0.0,), (1.0,))
    variables = _init(network)
    images = test.images / 255
    statistics = {"mean": jnp.array([images.mean()]), "var": jnp.array([share * images.var()])}
    variables = {**variables, "batch_stats": {"bn": statistics}}
    found = verification.verify(network, variables, test, padding=0, flip=False)
    assert found.is_strange == is_strange, found


class Amplifying(nn.Module):
    """Between its two BatchNorms, a small difference becomes a large one."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="second")(jnp.exp(3 * x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_teacher_that_amplifies_differences_is_measured_in_training_mode(test):
    network = Classifier(Amplifying(), (0.3,), (0.3,))
    variables = _init(network)
    images = jnp.asarray(test.images / 255, jnp.float32)

    @jax.jit
    def remembered(variables):
        first, second = network(variables, images, train=True, capture=(BN,)).bn
        statistics = {"first": {"mean": first.mean, "var": 1.2 * first.var}}
        return {**variables, "batch_stats": {**statistics, "second": {"mean": second.mean, "var": second.var}}}

    variables = remembered(variables)
    found = verification.verify(network, variables, test, padding=0, flip=False)
    assert found.is_strange and found.deviation > 0.05 and found.layer == "second"
    assert found.may_amplify and found.in_training < 0.01
    network = Classifier(Amplifying(), (0.5,), (0.3,))
    other = verification.verify(network, variables, test, padding=0, flip=False)
    assert other.is_strange and other.in_training > 0.02 and not other.may_amplify


class EvaluationOnly(Amplifying):
    @nn.compact
    def __call__(self, x, train=False):
        assert not train
        return super().__call__(x)


def test_a_teacher_need_not_be_able_to_train(test):
    network = Classifier(EvaluationOnly(), (0.3,), (0.3,))
    variables = _init(network)
    found = verification.verify(network, variables, test, padding=0, flip=False)
    assert found.is_strange and found.in_training is None and not found.may_amplify


class Softmax(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.softmax(nn.Dense(10)(x.reshape(len(x), -1)))


class Batchwise(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)((x - x.mean(0)).reshape(len(x), -1))


@pytest.mark.parametrize("module", [Softmax(), Batchwise()], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("at_once", [8 * 8 * 512, 8 * 8 * 90])
def test_outputs_that_are_no_logits_are_noticed(test, monkeypatch, module, at_once):
    monkeypatch.setattr(verification, "_AT_ONCE", at_once)
    network = Classifier(module, (0.3,), (0.3,))
    variables = _init(network)
    found = verification.verify(network, variables, test, padding=0, flip=False)
    assert found.probabilities == isinstance(module, Softmax)
    assert found.depends == isinstance(module, Batchwise)


def _told(tmp_path, monkeypatch, found):
    """Returns what is said of a PyTorch file where that is found."""
    monkeypatch.setattr(verification, "verify", lambda *_, **__: found)
    config, said = tiny.get_config(), []
    config.teacher.update(checkpoint=str(tmp_path / "teacher.safetensors"), verify=True)
    source = teacher_source(config)
    Path(source.checkpoint).touch()
    verify_teacher(source, None, Trained(source.net, {}, ""), None, said.append)
    return " ".join(said)


@pytest.mark.parametrize(
    ("kind", "text"), [("probabilities", "Leave out its softmax"), ("depends", "evaluation mode")]
)
def test_they_are_refused(tmp_path, monkeypatch, kind, text):
    with pytest.raises(UserError, match=text):
        _told(tmp_path, monkeypatch, RIGHT._replace(**{kind: True}))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (RIGHT, "teacher: 95.0 % of 360 test images right; BatchNorm statistics deviate by 0.010 at most, at bn1"),
        (RIGHT._replace(deviation=0.5), "warning: the teacher's BatchNorm statistics do not fit these images"),
        (RIGHT._replace(deviation=0.5, in_training=0.004), "or nothing is wrong, for in training mode they fit"),
    ],
)
def test_what_is_found_is_said(tmp_path, monkeypatch, found, text):
    told = _told(tmp_path, monkeypatch, found)
    assert text in told
    assert ("warning" in told) == found.is_strange
    assert ("nothing is wrong" in told) == found.may_amplify


def test_weights_that_fit_by_name_and_guess_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_, **__: RIGHT._replace(accuracy=10.0, deviation=0.5))
    monkeypatch.setattr(stages.distill, "check_shapes", lambda *_: None)  # takes seconds
    config, said = tiny.get_config(), []
    config.teacher.update(arch="wrn10_1", checkpoint=str(tmp_path / "teacher.safetensors"), verify=True)
    shapes = teacher_source(config).net.abstract_variables()
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    torch_files.write_state_dict(Path(config.teacher.checkpoint), torch_names.to_state_dict(ones))
    with pytest.raises(
        UserError, match=r"10\.0 % of 360 .* near chance; .* Set --config\.teacher\.verify=false to go on"
    ):
        stages.run(config, "distill", tmp_path / "run", said.append)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    arguments = {"image_shape": (8, 8, 1), "num_classes": 10, "mean": 0.3, "std": 0.3}
    arguments |= {"test": (images, np.arange(40) % 10), "workdir": tmp_path / "run"}
    with pytest.raises(UserError, match="near chance"):
        cudfkd_jax.distill(teacher=config.teacher.checkpoint, student="wrn10_1", config=config, **arguments)
    assert not (tmp_path / "run").exists()
    config.teacher.verify = False
    monkeypatch.setattr(stages, "_run_part", lambda *_: said.append("it goes on"))
    monkeypatch.setattr(stages, "_say_results", lambda *_: None)
    stages.run(config, "distill", tmp_path / "run", said.append)
    assert "warning: the teacher's accuracy is near chance" in " ".join(said) and said[-1] == "it goes on"


def test_without_images_a_teacher_has_an_outlook(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "distillation_pace", lambda make_job, by_steps: Pace(60.0, 900.0))
    command = [f"--config={tiny.__file__}", "--stage=evaluate", f"--config.teacher.checkpoint={finished_run}"]
    assert main.main([*command, "--config.data.source=none"]) == 0
    text = capsys.readouterr().out
    assert "acc@1" not in text and "900 s per epoch here: 1 h 01 min for 16 student steps" in text
    assert main.main([*command, "--config.method=adi", "--config.data.source=none"]) == 2
    assert max(map(len, text.splitlines())) <= 110


def test_the_outlook_quotes_the_recorded_runs():
    for run in outlook.RUNS:
        summary = json.loads((RESULTS / run.folder / "summary.json").read_text())
        lost = summary["teacher"]["acc1"] - summary["student"]["acc1_last"]
        assert round(lost, 1) == run.lost


def test_a_teacher_is_measured_without_a_run(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [f"--config={tiny.__file__}", "--stage=evaluate", f"--config.teacher.checkpoint={finished_run}"]
    assert main.main(command) == 0
    text = capsys.readouterr().out
    assert "test images right; BatchNorm statistics" in text
    assert f"{weights.load_net(finished_run / 'teacher/net').net.metrics['acc1']:.2f}" in text
    assert "what to expect of cudfkd" in text and "BatchNorm  2 layers" in text and "for 16 student steps" in text
    assert not list(tmp_path.iterdir())
