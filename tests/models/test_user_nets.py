"""Tests of user networks by import path, with arbitrary call signatures and files."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
import user_nets
from flax import serialization
from helpers import snapshot

from cudfkd_jax import main, models
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.models.capture import BN, FEATURES, INSTANCES, STAGES, apply, mode_arguments
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.train_state import CollectionsTrainState, TrainState
from cudfkd_jax.runs import stages
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.storage import flax_files, weights
from cudfkd_jax.training import distill_steps

SHAPE = (8, 8, 1)
CONFIG = "--config=tests/support/tiny.py"


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def _variables(module=None):
    return nets.variables(Classifier(module or user_nets.Plain(), (0.3,), (0.3,)), SHAPE)


def _images():
    return np.random.default_rng(1).standard_normal((4, *SHAPE), np.float32)


# The mode of a module


@pytest.mark.parametrize(
    ("module", "named", "expected"),
    [
        (user_nets.Plain(), "", {"train": True}),
        (user_nets.Training(), "", {"training": True}),
        (user_nets.Deterministic(), "", {"deterministic": False}),
        (user_nets.UseRunningAverage(), "", {"use_running_average": False}),
        (user_nets.NoMode(), "", {}),
        (user_nets.OtherName(), "not frozen", {"frozen": False}),
        (models.build_classifier("wrn10_1", 10), "train", {"train": True}),
        (nn.Sequential([nn.Dense(3)]), "", {}),
    ],
)
def test_mode_is_found_or_named(module, named, expected):
    assert mode_arguments(module, train=True, train_argument=named) == expected
    assert mode_arguments(module, train=False, train_argument=named) == {k: not v for k, v in expected.items()}


@pytest.mark.parametrize(
    ("module", "named", "text"),
    [
        (user_nets.OtherName(), "", "OtherName must be called with frozen; name the argument"),
        (user_nets.Plain(), "is_training", "without an argument 'is_training'.*it takes x, train"),
    ],
)
def test_a_mode_that_is_not_there_is_refused(module, named, text):
    with pytest.raises(UserError, match=text):
        mode_arguments(module, train=True, train_argument=named)


@pytest.mark.parametrize("module", [user_nets.Training(), user_nets.UseRunningAverage()])
def test_the_mode_reaches_the_module(module):
    variables, x = _variables(module), _images()
    moved, kept = (
        jax.jit(functools.partial(apply, module, train=train))(variables, x).batch_stats["BatchNorm_0"]["mean"]
        for train in (True, False)
    )
    old = variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.all(moved != old) and np.array_equal(kept, old)


def test_dropout_has_a_key_in_training_alone():
    module = user_nets.Deterministic()
    variables, x = _variables(module), jnp.ones((4, *SHAPE))
    one, same, other = (
        apply(module, variables, x, train=True, key=jax.random.key(seed)).value for seed in (1, 1, 2)
    )
    assert (one == same).all() and not (one == other).all()
    assert (apply(module, variables, x).value == apply(module, variables, x, key=jax.random.key(1)).value).all()


def test_further_collections_are_updated_in_training_alone():
    network = Classifier(user_nets.Collections(), (0.0,), (1.0,))
    variables = _variables(user_nets.Collections())
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    assert jax.jit(network)(variables, images).collections == {"seen": variables["seen"]}
    train = jax.jit(functools.partial(network, train=True, capture=("bn",)))
    trained = train(variables, images, key=jax.random.key(2)).collections["seen"]
    assert trained["steps"] == 1 and trained["mean"] == pytest.approx(0.1 * float(images.mean()))


def test_the_train_state_of_other_networks_has_no_further_field():
    """Else their checkpoints of earlier versions would no longer load."""
    optimiser = optax.sgd(0.1)
    for module, kind in ((user_nets.Plain(), TrainState), (user_nets.Collections(), CollectionsTrainState)):
        state = TrainState.create(_variables(module), optimiser)
        assert type(state) is kind
        stepped = state.update(state.params, state.batch_stats, optimiser).with_collections({"seen": 1})
        assert type(stepped) is kind and stepped.variables.get("seen") == (
            1 if "seen" in state.variables else None
        )


# Captured values


def test_features_are_the_inputs_of_the_last_layer():
    variables = _variables()
    outputs = jax.jit(functools.partial(apply, user_nets.Plain(), capture=(FEATURES,)))(variables, _images())
    head = jax.tree.map(np.asarray, variables["params"]["Dense_0"])
    expected = np.asarray(outputs.features) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(expected, outputs.value, rtol=1e-5)
    assert outputs.features.shape == (4, 16) and outputs.bn == outputs.instances == outputs.stages == ()


def test_instances_average_to_the_batch_statistics():
    captured = jax.jit(functools.partial(apply, user_nets.Plain(), capture=(BN, INSTANCES)))
    outputs = captured(_variables(), _images())
    assert [i.shape for i in outputs.instances] == [(4, 8), (4, 16)]
    for instances, bn in zip(outputs.instances, outputs.bn, strict=True):
        np.testing.assert_allclose(np.mean(instances, 0), bn.mean, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [
        ("wrn16_2", [(32, 16), (32, 32), (16, 64), (8, 128)]),
        ("resnet18", [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)]),
        ("vgg11", [(16, 64), (8, 128), (4, 256), (4, 512), (4, 512)]),
    ],
)
def test_stages_are_the_maps_between_the_blocks(arch, sizes):
    network = Classifier(models.build_classifier(arch, 10), (0.5,) * 3, (0.2,) * 3)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32, 3)))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    stages_ = jax.eval_shape(lambda v, x: network(v, x, capture=(STAGES,)), variables, images).stages
    assert [(m.shape[1], m.shape[3]) for m in stages_] == sizes
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("capture", "module", "text"),
    [
        (STAGES, user_nets.Plain(), "Plain does not offer the maps between its stages"),
        (FEATURES, nn.Sequential((nn.Conv(10, (8, 8), padding="VALID"), lambda x: x[:, 0, 0])), "there is none"),
    ],
)
def test_what_cannot_be_captured_is_refused(capture, module, text):
    with pytest.raises(UserError, match=text):
        jax.eval_shape(functools.partial(apply, module, capture=(capture,)), _variables(module), _images())


# Names


@pytest.mark.parametrize("name", ["Plain", "factory"])
def test_an_import_path_is_a_network(name):
    assert models.build_classifier(f"user_nets:{name}", 10) == user_nets.Plain()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_package:Net", "cannot import 'no_such_package'"),
        ("user_nets:Plane", r"holds no 'Plane' \(did you mean 'Plain'\?\)"),
        ("user_nets:", "holds no ''"),
        (":Plain", "cannot import ''"),
        ("user_nets:WantsArguments", r"wants arguments \(features\)"),
        ("user_nets:not_a_network", "gives a int, not a flax.linen.Module"),
        ("user_nets:SHAPE_", "holds no 'SHAPE_'"),
        ("user_nets:nn", "gives a module, not a flax.linen.Module"),
    ],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_wrong_import_path_is_one_line(path, text, role, tmp_path, capsys):
    with pytest.raises(UserError, match=text):
        models.build_classifier(path, 10)
    status = main.main([CONFIG, f"--config.{role}.module={path}", f"--workdir={tmp_path / 'run'}"])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and error.startswith(f"cudfkd: error: {path}")
    assert not (tmp_path / "run").exists()


# Files


def _write(path, tree, form):
    tree = jax.tree.map(np.asarray, tree)
    if form == "msgpack":
        path = path.with_suffix(".msgpack")
        path.write_bytes(serialization.to_bytes(tree))
    elif form == "manager":
        with ocp.CheckpointManager(path) as manager:
            manager.save(9, args=ocp.args.StandardSave(jax.tree.map(np.zeros_like, tree)))
            manager.save(10, args=ocp.args.StandardSave(tree))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    return path


@pytest.mark.parametrize("form", ["msgpack", "orbax", "manager"])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"state": {**v, "opt_state": {"mu": np.ones(3)}}}])
def test_flax_checkpoints_are_read(form, wrap, tmp_path):
    variables = jax.tree.map(np.asarray, _variables())
    path = _write(tmp_path / "saved", wrap(variables), form)
    place = flax_files.find_checkpoint(path) if path.is_dir() else path
    found = flax_files.read_variables(place, variables).variables
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, variables)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_other_widths_are_cast(dtype, tmp_path):
    variables = jax.tree.map(lambda x: np.asarray(x).astype(dtype), _variables())
    path = _write(tmp_path / "saved", variables, "msgpack")
    found = flax_files.read_variables(path, jax.eval_shape(_variables)).variables
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)), found, variables)


def _changed(change):
    tree = jax.tree.map(np.array, _variables())
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"weights": {"w": np.ones(3)}}, "holds no 'params' but weights"),
        (_changed(lambda t: t["params"].pop("Dense_0")), "Dense_0/bias is absent and should be"),
        (_changed(lambda t: t["params"].update(more={"w": np.ones(2)})), "more/w is .2. and should be absent"),
        (_changed(lambda t: t["params"]["Dense_0"].update(bias=np.ones(3))), "is .3. and should be .10."),
        (_changed(lambda t: t["params"]["Dense_0"]["bias"].fill(np.nan)), "Dense_0/bias holds NaN"),
        (_changed(lambda t: t["params"]["Dense_0"].update(bias=np.ones(10, np.int32))), "bias is int32"),
    ],
)
@pytest.mark.parametrize("form", ["msgpack", "orbax"])
def test_other_contents_are_refused(tree, text, form, tmp_path):
    path = _write(tmp_path / "saved", tree, form)
    with pytest.raises(UserError, match=text):
        flax_files.read_variables(path, jax.eval_shape(_variables))


@pytest.mark.parametrize("content", [b"", b"\x93", b"\x82\xa6params", b"not msgpack at all" * 9, b"\xc1"])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "saved.msgpack").write_bytes(content)
    with pytest.raises(UserError, match=r"saved\.msgpack"):
        flax_files.read_variables(tmp_path / "saved.msgpack", jax.eval_shape(_variables))


@pytest.mark.parametrize("files", ["_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_0/d/*"])
def test_a_damaged_orbax_folder_is_refused_and_nothing_else_is_said(files, tmp_path, capfd, caplog):
    path = _write(tmp_path / "saved", _variables(), "orbax")
    caplog.clear()
    for file in path.glob(files):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="is damaged or no checkpoint of Flax"):
        flax_files.read_variables(path, jax.eval_shape(_variables))
    assert caplog.text == "" and capfd.readouterr() == ("", "")


# Whole runs


def _run(folder, *arguments):
    return main.main([CONFIG, f"--workdir={folder}", *arguments])


@pytest.mark.long
def test_a_run_with_user_networks(tmp_path, capsys):
    """Trains, distils, evaluates and exports by import path, and reads the teacher from an Orbax checkpoint.

    The teacher has a collection of variables of its own; so has the student, which counts its steps.
    """
    own = ("--config.teacher.module=user_nets:Collections", "--config.student.module=user_nets:Collections")
    first = tmp_path / "first"
    assert _run(first, *own) == 0
    assert json.loads((first / "student/net.json").read_text())["arch"] == "user_nets:Collections"
    student = weights.load_net(first / "student").variables
    assert student["seen"]["steps"] == 16 and student["seen"]["mean"] != 0
    assert main.main(["--stage=evaluate", f"--workdir={first}"]) == 0
    assert main.main(["--stage=export", "--format=orbax", f"--workdir={first}"]) == 0
    assert main.main(["--stage=export", "--format=stablehlo", f"--workdir={first}"]) == 0
    capsys.readouterr()
    assert main.main(["--stage=export", "--format=torch", f"--workdir={first}"]) == 2
    assert "no names in PyTorch" in capsys.readouterr().err

    teacher = weights.load_net(first / "teacher/net")
    saved = _write(tmp_path / "saved", teacher.variables, "orbax")
    before = snapshot(saved)
    config = tiny.get_config()
    config.teacher.update(module="user_nets:Collections", checkpoint=str(saved))
    found = find_teacher(teacher_source(config), tmp_path / "second")
    assert snapshot(saved) == before and found.sha256 == teacher.sha256


def test_a_teacher_without_batch_norm_is_distilled_without_its_term(tmp_path, capsys, monkeypatch):
    begun = []

    def distill(job, *more):
        begun.append(job)
        raise RunFailedError("that is enough")

    monkeypatch.setattr(stages.distill, "distill", distill)
    saved = _write(tmp_path / "saved", _variables(user_nets.NoMode()), "msgpack")
    arguments = ("--config.teacher.module=user_nets:NoMode", f"--config.teacher.checkpoint={saved}")
    assert _run(tmp_path / "run", *arguments, "--stage=distill") == 1
    assert "the teacher has no BatchNorm: it is distilled without the BN term\n" in capsys.readouterr().out
    (job,) = begun
    init = functools.partial(distill_steps.init_state, problem=job.problem, image_shape=SHAPE)
    reported = jax.eval_shape(init, job.key, job.pair.teacher_variables).synthesis.total
    assert "bn_loss" not in reported and "class_loss" in reported


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("NotLogits", "the student returns a dict for 2 images, not logits [2, 10]"),
        ("Fails", "the student cannot be applied to images [8, 8, 1]: TypeError"),
        ("OtherName", "OtherName must be called with frozen"),
    ],
)
def test_modules_that_are_no_classifiers_are_refused(module, text, finished_run, tmp_path, capsys):
    arguments = (f"--config.student.module=user_nets:{module}", f"--config.teacher.checkpoint={finished_run}")
    assert _run(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_pytorch_weights_do_not_fit_a_user_module(tmp_path, capsys):
    (tmp_path / "net.pth").write_bytes(b"anything")
    arguments = ("--config.teacher.module=user_nets:Plain", f"--config.teacher.checkpoint={tmp_path / 'net.pth'}")
    assert _run(tmp_path / "run", *arguments) == 2
    assert "have no names in user_nets:Plain" in capsys.readouterr().err


def test_a_noisy_teacher_is_trained_no_further_than_it_should(tmp_path, tiny_config):
    tiny_config.teacher.update(epochs=6, stop_accuracy=9.0)
    stages.run(tiny_config, "teacher", tmp_path, say=lambda text: None)
    records = [json.loads(line) for line in (tmp_path / "teacher/metrics.jsonl").read_text().splitlines()]
    assert [r["acc1"] >= 9 for r in records] == [False] * (len(records) - 1) + [True] and len(records) < 6
    told = []
    stages.run(tiny_config, "teacher", tmp_path, say=told.append)
    assert "finished" in told[0]


# Without data


def test_a_run_without_data(finished_run, tmp_path, capsys):
    without = ("--config.data.source=none", "--stage=distill")
    assert _run(tmp_path / "run", *without, f"--config.teacher.checkpoint={finished_run}") == 0
    out = capsys.readouterr().out
    assert "on held-out synthetic images, not on real ones" in out
    assert re.findall(r"epoch (\d+): hint: .* (\d+) synthetic images deviate by", out) == [("2", "256")]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert not {"acc1_last", "agree1", "loyalty"} & summary["student"].keys() and "acc1" not in summary["teacher"]
    assert 0 <= summary["student"]["agree1_synthetic"] <= 100
    assert not (tmp_path / "run/student_best").exists() and (tmp_path / "run/student/net.json").exists()
    assert main.main(["--stage=evaluate", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "data.source=none has none" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["all", "teacher", "scratch"])
def test_training_on_no_data_is_refused(stage, tmp_path, capsys):
    assert _run(tmp_path / "run", "--config.data.source=none", f"--stage={stage}") == 2
    assert "data.source=none has no images to train on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
