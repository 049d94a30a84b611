"""What every registered method must have, so that none is half there."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from helpers import outcome
from PIL import Image

from cudfkd_jax.config import methods, networks, optimisers
from cudfkd_jax.methods import METHODS
from cudfkd_jax.methods.generative import generator_optimiser
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.errors import UserError

_TESTS = Path(__file__).parents[1]


def _module(method):
    return importlib.import_module(f"cudfkd_jax.methods.{method}")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_citation_and_its_objective(method):
    text = _module(method).__doc__
    assert re.search(r"\b(19|20)\d\d\b|Curriculum\"", text), "a citation"
    assert re.search(r"^    (generator|synthesis)\b", text, re.MULTILINE), "what is minimised for the images"
    assert re.search(r"^    student\b", text, re.MULTILINE), "what the student minimises"
    assert re.search(r"released? |original|benchmark", text), "what differs from the release"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_unit_tests(method):
    module = _module(method).__name__.rpartition(".")[2]
    texts = [
        path.read_text(encoding="utf-8") for path in _TESTS.rglob("test_*.py") if path.name != Path(__file__).name
    ]
    assert any(re.search(rf"\b{module}\b", text) for text in texts)


@pytest.mark.slow  # `test_a_stopped_run_reaches_the_same_results` does it for cudfkd
@pytest.mark.parametrize("method", METHODS)
def test_two_rounds_from_the_command_line_to_the_student(method, finished_run, tmp_path):
    """Trained, measured, saved, drawn; and by the same settings and seed in another process to the same bits."""
    here, there = tmp_path / "here", tmp_path / "there"
    _two_epochs(method, finished_run, here)
    records = [json.loads(line) for line in (here / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert all(np.isfinite([v for v in record.values() if isinstance(v, float)]).all() for record in records)
    assert {"synthesis_loss", "student_loss", "acc1", "agree1"} <= records[1].keys()
    assert json.loads((here / "summary.json").read_text())["method"] == method
    with Image.open(here / "samples/epoch_0002.png") as picture:
        assert np.asarray(picture).std() > 0
    assert (here / "student/net.json").exists()

    _two_epochs(method, finished_run, there, PYTHONHASHSEED="1")  # sets have another order
    assert outcome(here) == outcome(there)
    pictures = [path.name for path in (here / "samples").iterdir()]
    assert len(pictures) == 4
    for name in pictures:
        assert (here / "samples" / name).read_bytes() == (there / "samples" / name).read_bytes()


def _two_epochs(method: str, teacher: Path, workdir: Path, **environment: str) -> None:
    """Runs a method; where an environment is given in a process of its own."""
    changes = {"teacher.checkpoint": str(teacher), "distill.epochs": 2, "log.samples_every_epochs": 1}
    if not environment:
        config = tiny.get_config(f"method={method}")
        config.update_from_flattened_dict(changes)
        stages.run(config, "distill", workdir, say=lambda text: None)
        return
    command = [sys.executable, "-m", "cudfkd_jax.main", f"--config={tiny.__file__}:method={method}"]
    command += ["--stage=distill", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in changes.items())]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.needs_batch_norm])
def test_a_method_of_batch_norm_refuses_a_teacher_without(method):
    config = tiny.get_config(f"method={method}")
    pair = networks.pair(config, networks.described(config, "teacher"), {"params": {}, "batch_stats": {}})
    with pytest.raises(UserError, match=f"method={method} aligns the teacher's BatchNorm statistics"):
        methods.method(config, pair)


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("cmi", {"cmi.bank_rows": 100}, "bank_rows=100 does not hold whole synthetic batches"),
        ("cmi", {"cmi.bank_draws": 1000}, "bank_draws=1000 of bank_rows=64 cannot be drawn"),
        ("mb_dfkd", {"memory.capacity": 10}, "capacity=10 of the memory cannot be filled 4 images at a time"),
        ("cudfkd", {"memory.capacity": 10}, "capacity=10 of the memory cannot be filled 4 images at a time"),
        ("pre_dfkd", {"distill.batch_size": 12}, "distill.batch_size=12 has no 8th part to remember"),
        ("dfad", {"memory.capacity": 8, "distill.batch_size": 4}, "distill.batch_size=4 has no 8th part"),
        (
            "dafl",
            {f"synthesis.{k}_weight": 0.0 for k in ("class", "balance", "activation")},
            "every weight of the",
        ),
        (
            "fastdfkd",
            {f"synthesis.{k}_weight": 0.0 for k in ("bn", "class", "adversarial")},
            "every weight of the",
        ),
        ("fastdfkd", {"data.source": "none", "synthesis.batch_size": 1}, "synthesis batches of 1 leave"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(method, settings, text):
    config = tiny.get_config(f"method={method}")
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=text):
        methods.method(config, _pair(config))


@pytest.mark.parametrize("additions", [{"memory.capacity": 8}, {"generator.ema_decay": 0.9}])
def test_a_memory_and_an_average_are_added_to_generators(additions):
    config = tiny.get_config()
    plain = methods.method(config, _pair(config))
    config.update_from_flattened_dict(additions)
    assert type(plain).__name__ == "Method" and (plain.begin is None)
    added = methods.method(config, _pair(config))
    assert (added.begin is not None) == ("memory.capacity" in additions)


def _pair(config):
    net = networks.described(config, "teacher")
    return networks.pair(config, net, net.abstract_variables())


@pytest.mark.parametrize(
    ("key", "value"), [("memory.capacity", 8), ("generator.ema_decay", 0.5), ("generator.schedule", "cosine")]
)
@pytest.mark.parametrize("method", ["cmi", "fastdfkd", "adi", "pre_dfkd", "mb_dfkd"])
def test_they_are_refused_where_nothing_would_look_at_them(method, key, value):
    from cudfkd_jax.config import validate

    config = tiny.get_config(f"method={method}")
    config.update_from_flattened_dict({key: value})
    if key in METHODS[method].reads:
        assert (method, key) in {
            ("mb_dfkd", "memory.capacity"),
            *((name, "generator.schedule") for name in ("mb_dfkd", "pre_dfkd")),
        }
        validate.check(config)
    else:
        with pytest.raises(UserError, match=f"{key}=.* is for cudfkd, dafl"):
            validate.check(config)


def _updates(optimiser, gradients):
    """What an optimiser adds to a parameter of 0, step by step."""
    state, parameter, steps = optimiser.init(jnp.zeros(2)), jnp.zeros(2), []
    compiled = jax.jit(optimiser.update)
    for gradient in gradients:
        update, state = compiled(np.array(gradient, np.float32), state, parameter)
        steps.append(np.asarray(update))
    return steps


def test_a_generator_slows_down_with_the_student_where_that_is_set():
    config = tiny.get_config()
    config.distill.epochs, per_epoch = 4, config.distill.rounds_per_epoch
    for schedule, expected in (("constant", [1, 1, 1, 1]), ("cosine", [1, 0.853553, 0.5, 0.146447])):
        config.generator.schedule = schedule
        steps = _updates(generator_optimiser(methods.method_settings(config)), [[1.0, -1.0]] * 4 * per_epoch)
        rates = [-step[0] / config.generator.learning_rate for step in steps[::per_epoch]]
        np.testing.assert_allclose(rates, expected, rtol=1e-4)  # Adam's step along a constant gradient
    config.distill.update(warmup_rounds=2, rounds_per_epoch=1, synthesis_steps=1)
    steps = _updates(generator_optimiser(methods.method_settings(config)), [[1.0, -1.0]] * 6)
    rates = [-step[0] / config.generator.learning_rate for step in steps]
    np.testing.assert_allclose(rates, [1, 1, *expected], rtol=1e-4)  # after the warm-up


def test_the_students_optimiser_is_sgd_or_adam_and_clips():
    config = tiny.get_config()
    config.distill.update(weight_decay=0.0, learning_rate=0.25, momentum=0.0)
    rate = optax.constant_schedule(0.25)
    gradient = [3.0, 4.0]
    for settings, expected in (
        ({}, [-0.75, -1.0]),
        ({"clip_norm": 1.0}, [-0.15, -0.2]),
        ({"clip_norm": 50.0}, [-0.75, -1.0]),
        ({"clip_norm": 0.0, "optimiser": "adam"}, [-0.25, -0.25]),
    ):
        config.distill.update(settings)
        np.testing.assert_allclose(
            _updates(optimisers.student_optimiser(config, rate), [gradient])[0], expected, rtol=1e-5
        )
