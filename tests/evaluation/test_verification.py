"""Tests of the verification of teachers: what a right and a wrong one look like, and what happens then."""

import contextlib
import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cudfkd_jax import main
from cudfkd_jax.config import build
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.evaluation import verification
from cudfkd_jax.evaluation.verification import Verification
from cudfkd_jax.models.capture import BN, BNStatistics, batch_norm_layers
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import outlook, stages, timing
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_files, torch_names

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


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    """Returns a teacher of more than 90 % and the test images."""
    config, folder = tiny.get_config(), tmp_path_factory.mktemp("teacher")
    config.teacher.update(arch="wrn10_1", epochs=4, batch_size=32)
    stages.run(config, "teacher", folder, say=lambda text: None)
    config.teacher.checkpoint = str(folder)
    return find_teacher(teacher_source(config), folder), build.dataset(config, ("test",)).splits["test"]


def _verify(trained, **changes):
    teacher, test = trained
    net = dataclasses.replace(teacher.net, **changes)
    return verification.verify(net.classifier(), teacher.variables, test, padding=1, flip=False)


def test_another_normalisation_deviates(trained):
    right = _verify(trained)
    assert right.images == 359 and right.accuracy > 90 and not right.is_strange, right
    assert _verify(trained, mean=(0.0,), std=(1.0,)).is_strange


@pytest.mark.parametrize("pixels", [8 * 8 * 300, 8 * 8 * 7])
def test_passes_over_large_images_find_what_one_finds(trained, monkeypatch, pixels):
    whole = _verify(trained, mean=(0.2,))
    monkeypatch.setattr(verification, "_AT_ONCE", pixels)
    parts = _verify(trained, mean=(0.2,))
    assert parts._replace(deviation=0.0) == whole._replace(deviation=0.0)
    assert parts.deviation == pytest.approx(whole.deviation, rel=1e-3) and whole.deviation > 0.01


def test_few_of_huge_images_are_looked_at(trained, monkeypatch):
    monkeypatch.setattr(verification, "_PIXELS", 8 * 8 * 40)
    assert _verify(trained).images == 40


def test_the_largest_deviation_on_images_alone(trained):
    teacher, test = trained
    images = test.images.astype(np.float32) / 255
    right, layer = verification.largest_deviation(teacher.net.classifier(), teacher.variables, images)
    wrong, _ = verification.largest_deviation(teacher.net.classifier(), teacher.variables, 1 - images)
    assert right < 0.05 < wrong and layer in batch_norm_layers(teacher.variables)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize(("share", "is_strange"), [(1.0, False), (2 / 3, False), (0.3, True)])
def test_statistics_of_mixed_images_are_known(trained, share, is_strange):
    """Shares λ of mixup, uniform in [0, 1], leave E[λ² + (1 − λ)²] = 2/3 of the variance."""
    test = trained[1]
    network = Classifier(Normalised(), (0.0,), (1.0,))
    variables = network.init(jax.random.key(0), (8, 8, 1))
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


def test_a_teacher_that_amplifies_differences_is_measured_in_training_mode(trained):
    network = Classifier(Amplifying(), (0.3,), (0.3,))
    variables = network.init(jax.random.key(0), (8, 8, 1))
    images = jnp.asarray(trained[1].images / 255, jnp.float32)

    @jax.jit
    def remembered(variables):
        first, second = network(variables, images, train=True, capture=(BN,)).bn
        statistics = {"first": {"mean": first.mean, "var": 1.2 * first.var}}
        return {**variables, "batch_stats": {**statistics, "second": {"mean": second.mean, "var": second.var}}}

    variables = remembered(variables)
    found = verification.verify(network, variables, trained[1], padding=0, flip=False)
    assert found.is_strange and found.deviation > 0.05 and found.layer == "second"
    assert found.may_amplify and found.in_training < 0.01
    other = verification.verify(
        Classifier(Amplifying(), (0.5,), (0.3,)), variables, trained[1], padding=0, flip=False
    )
    assert other.is_strange and other.in_training > 0.02 and not other.may_amplify


class EvaluationOnly(Amplifying):
    @nn.compact
    def __call__(self, x, train=False):
        assert not train
        return super().__call__(x)


def test_a_teacher_need_not_be_able_to_train(trained):
    network = Classifier(EvaluationOnly(), (0.3,), (0.3,))
    variables = network.init(jax.random.key(0), (8, 8, 1))
    found = verification.verify(network, variables, trained[1], padding=0, flip=False)
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
def test_outputs_that_are_no_logits_are_noticed(trained, monkeypatch, module, at_once):
    monkeypatch.setattr(verification, "_AT_ONCE", at_once)
    network = Classifier(module, (0.3,), (0.3,))
    variables = module.init(jax.random.key(0), jnp.ones((4, 8, 8, 1)))
    found = verification.verify(network, variables, trained[1], padding=0, flip=False)
    assert found.probabilities == isinstance(module, Softmax)
    assert found.depends == isinstance(module, Batchwise)


@pytest.mark.parametrize("kind", ["probabilities", "depends"])
def test_they_are_refused(trained, tmp_path, monkeypatch, kind):
    with pytest.raises(
        UserError, match={"probabilities": "Leave out its softmax", "depends": "evaluation mode"}[kind]
    ):
        _told(trained, tmp_path, monkeypatch, RIGHT._replace(**{kind: True}))


def _file(trained, tmp_path, change=lambda name, value: value):
    """Writes the teacher as a PyTorch program would."""
    state_dict = torch_names.to_state_dict(trained[0].variables)
    path = tmp_path / "teacher.safetensors"
    torch_files.write_state_dict(path, {name: change(name, value) for name, value in state_dict.items()})
    return path


def _told(trained, tmp_path, monkeypatch, found, **settings):
    config = tiny.get_config()
    config.teacher.update(arch="wrn10_1", checkpoint=str(_file(trained, tmp_path)), verify=True)
    config.update_from_flattened_dict(settings)
    monkeypatch.setattr(verification, "verify", lambda *_, **__: found)

    def distill(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.distill, "distill", distill)
    said = []
    with contextlib.suppress(KeyboardInterrupt):
        stages.run(config, "distill", tmp_path / "run", said.append)
    return " ".join(said)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (RIGHT, "teacher: 95.0 % of 360 test images right; BatchNorm statistics deviate by 0.010 at most, at bn1"),
        (RIGHT._replace(deviation=0.5), "warning: the teacher's BatchNorm statistics do not fit these images"),
        (RIGHT._replace(deviation=0.5, in_training=0.004), "or nothing is wrong, for in training mode they fit"),
    ],
)
def test_what_is_found_is_said(trained, tmp_path, monkeypatch, found, text):
    told = _told(trained, tmp_path, monkeypatch, found)
    assert text in told
    assert ("warning" in told) == found.is_strange
    assert ("nothing is wrong" in told) == found.may_amplify


def test_weights_that_fit_by_name_and_guess_stop_the_run(trained, tmp_path, monkeypatch):
    guessing = RIGHT._replace(accuracy=10.0, deviation=0.5)
    with pytest.raises(
        UserError, match=r"10\.0 % of 360 .* near chance; .* Set --config\.teacher\.verify=false to go on"
    ):
        _told(trained, tmp_path, monkeypatch, guessing)
    assert not (tmp_path / "run").exists()
    told = _told(trained, tmp_path, monkeypatch, guessing, **{"teacher.verify": False})
    assert "warning: the teacher's accuracy is near chance" in told


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


def test_a_teacher_is_measured_without_a_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = _file(trained, tmp_path)
    command = [f"--config={tiny.__file__}:teacher=wrn10_1", f"--config.teacher.checkpoint={path}"]
    assert main.main([*command, "--stage=evaluate"]) == 0
    text = capsys.readouterr().out
    assert "test images right; BatchNorm statistics" in text
    assert f"{trained[0].net.metrics['acc1']:.2f}" in text
    assert "what to expect of cudfkd" in text and "BatchNorm  7 layers" in text and "for 16 student steps" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
