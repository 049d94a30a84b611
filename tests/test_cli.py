"""Tests of the command line from a user's view: every mistake is one line and changes no files."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from helpers import snapshot
from PIL import Image

import cudfkd_jax
from cudfkd_jax import main
from cudfkd_jax.config import access, defaults, loading
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.errors import RunFailedError, StoppedError
from cudfkd_jax.storage import formats, records

TINY = str(Path(__file__).parent / "support" / "tiny.py")
RETURN = "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({})"
DIGITS = str(Path(__file__).parents[1] / "configs" / "digits.py")


@pytest.fixture(autouse=True)
def place(tmp_path, tmp_path_factory, monkeypatch):
    """Provides a separate working directory; caches are elsewhere."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return folder


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """Runs the command line with invalid arguments; returns its message."""

    def compile_(*args, **kwargs):
        raise AssertionError("compiled")

    def run(*arguments: str) -> str:
        before = snapshot(place.parent)
        with monkeypatch.context() as patch:
            patch.setattr("cudfkd_jax.runtime.devices.Devices.compile", compile_)
            status = main.main(arguments)
        out, err = capsys.readouterr()
        assert status == 2, err
        assert out == ""
        assert re.fullmatch(r"cudfkd: error: [^\n]+\n", err), err
        assert snapshot(place.parent) == before
        return err

    return run


def _subprocess(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cudfkd_jax.main", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )


# Missing and invalid configurations


def test_without_configuration_as_a_process(place):
    done = _subprocess()
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("cudfkd: error: no configuration; give one, e.g. --config=digits .*\n", done.stderr)
    assert list(place.iterdir()) == []


def test_the_console_script_does_the_same(place):
    script = Path(sys.executable).with_name("cudfkd")
    done = subprocess.run(
        [script, f"--config={TINY}", "--config.sed=1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("cudfkd: error: unknown configuration key 'sed'; the nearest are seed.*\n", done.stderr)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config="], "no configuration; give one"),
        (["--workdir=x"], "no configuration; give one"),
        (["--config"], "--config: expected one argument"),
        (
            ["--config=configs/none.py"],
            "no configuration file 'configs/none.py'; valid: cifar10, ",
        ),
        (
            ["--config=../near/tiny.pi"],
            "no configuration file '../near/tiny.pi' (did you mean '../near/tiny.py'?)",
        ),
        (["--config=config/digits.py"], "file 'config/digits.py' (did you mean 'digits'?); valid: cifar10,"),
        (["--config=digts.py"], "no configuration file 'digts.py' (did you mean 'digits'?)"),
        (["--config=none.py", "--stage=evaluate", "--workdir=x"], "no configuration file 'none.py'"),
        ([f"--config={TINY}", "--stage=evaluate"], "--workdir=runs/tiny holds no run"),
        (["--config=.", "--config.seed=1"], "no configuration file '.'"),
        (["--stage=evaluate"], "no run; give its folder with --workdir"),
        ([f"--config={TINY}", "more"], "unexpected argument 'more'; settings are given as --config.key=value"),
        (
            [f"--config={TINY}", "--wrkdir=x"],
            "unknown option '--wrkdir' (did you mean '--workdir'?); valid: --debug, --config, --stage, --workdir,",
        ),
        ([f"--config={TINY}", "-workdir", "x"], "unknown option '-workdir' (did you mean '--workdir'?)"),
        ([f"--config={TINY}", "-v"], "unknown option '-v'; valid: --debug, "),
        ([f"--config={TINY}", "--confg.seed=1"], "unknown option '--confg.seed' (did you mean '--config.seed'?)"),
        ([f"--config={TINY}:methd=cmi"], "colon of --config 'methd' (did you mean 'method'?); valid: teacher,"),
        ([f"--config={TINY}:method=cmmi"], "unknown method 'cmmi' (did you mean 'cmi'?)"),
        (
            [f"--config={TINY}:teachr=wrn10_1"],
            "unknown argument after the colon of --config 'teachr' (did you mean 'teacher'?); valid: teacher,",
        ),
        (
            [f"--config={TINY}", "--stage=evaluat"],
            "unknown --stage 'evaluat' (did you mean 'evaluate'?); valid: all,",
        ),
    ],
)
def test_arguments_that_are_wrong(place, refused, arguments, text):
    beside = place.with_name("near") / "tiny.py"
    beside.parent.mkdir()
    beside.touch()
    assert text in refused(*arguments)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("x = 1", "KeyError: 'get_config'"),
        ("def get_config():\n  raise ValueError('two\\nlines')", "ValueError: two lines; fix the file"),
        ("def get_config():\n  return undefined", "NameError: name 'undefined' is not defined"),
        ("def get_config():\n  return None", "TypeError: get_config() returned NoneType, not ConfigDict"),
        ("def get_config():\n  open('missing')", "FileNotFoundError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (RETURN.format("{'distill': {'epoch': 1}}"), "unknown configuration key 'distill.epoch'"),
        (RETURN.format("{'distill': {'epochs': 'x'}}"), "x is of original type <class 'str'>"),
        ("\0", "cannot be loaded"),
    ],
)
def test_a_configuration_file_that_cannot_be_loaded(place, refused, content, text):
    (place / "mine.py").write_text(content)
    error = refused("--config=mine.py")
    assert text in error
    assert "mine.py" in error or "unknown configuration key" in error


def test_a_configuration_file_need_not_set_everything(place, refused):
    (place / "mine.py").write_text(RETURN.format("{'curriculum': {'strategy': 'sofd'}}"))
    assert "unknown curriculum.strategy 'sofd' (did you mean 'soft'?)" in refused("--config=mine.py")


# Settings


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("sead=1", "unknown configuration key 'sead'; the nearest are seed"),
        ("distill.epoch=1", "unknown configuration key 'distill.epoch'; the nearest are distill.epochs"),
        ("distill={}", "unknown configuration key 'distill'; the nearest are distill."),
        ("distill.epochs.x=1", "unknown configuration key 'distill.epochs.x'; the nearest are distill.epochs"),
        ("seed", "Missing value for flag --config.seed"),
        ("distill.epochs=x", "--config.distill.epochs=x must be a whole number, such as 4"),
        ("distill.epochs=2.5", "--config.distill.epochs=2.5 must be a whole number"),
        ("distill.epochs=", "--config.distill.epochs= must be a whole number"),
        ("distill.temperature=hot", "--config.distill.temperature=hot must be a number, such as 20.0"),
        ("data.flip=maybe", "--config.data.flip=maybe must be true or false"),
        ("data.image_shape=(8, 8,", "--config.data.image_shape=(8, 8, must be a tuple, such as (8, 8, 1)"),
        ("data.image_shape=8", "data.image_shape=(8,) must be (height, width, channels)"),
        ("data.mean=('a',)", "data.mean=('a',) must have one number for each of 1 channels"),
        ("data.std=(0.0,)", "data.std=(0.0,) must be greater than 0"),
        ("method=dafl", "--config.method=dafl: choose a method after the colon of --config"),
        ("teacher.arch=wrn16-2", "unknown model 'wrn16-2' (did you mean 'wrn16_2'?); valid: resnet18, "),
        ("student.arch=", "unknown model ''"),
        ("curriculum.strategy=softer", "unknown curriculum.strategy 'softer' (did you mean 'soft'?); valid: "),
        ("curriculum.granularity=image", "unknown curriculum.granularity 'image'; valid: sample, batch"),
        ("data.source=torch", "unknown data.source 'torch'; valid: digits, tfds, archive, folder, npz"),
        ("loop=while", "unknown loop 'while'; valid: auto, python, scan"),
        (
            "distill.temperature=0",
            "distill.temperature=0.0 must be greater than 0; set --config.distill.temperature",
        ),
        ("distill.temperature=inf", "distill.temperature=inf must be a finite number"),
        ("curriculum.lambda_0=-1", "curriculum.lambda_0=-1.0 must be greater than 0"),
        ("curriculum.lambda_0=nan", "curriculum.lambda_0=nan must be greater than 0"),
        ("curriculum.lambda_slope=nan", "curriculum.lambda_slope=nan must not be negative"),
        ("curriculum.lambda_max=1", "curriculum.lambda_max=1.0 is below curriculum.lambda_0=2.0; raise it"),
        ("distill.learning_rate=0", "distill.learning_rate=0.0 must be greater than 0"),
        (
            "distill.learning_rate_end=0.5",
            "distill.learning_rate_end=0.5 must be at most distill.learning_rate=0.1; set",
        ),
        ("teacher.learning_rate=-0.1", "teacher.learning_rate=-0.1 must be greater than 0"),
        ("generator.learning_rate=nan", "generator.learning_rate=nan must be greater than 0"),
        (
            "curriculum.k_begin=0.75",
            "curriculum.k_begin=0.75 and curriculum.k_end=0.75: choose 0 <= k_begin < k_end",
        ),
        ("curriculum.k_end=1.1", "curriculum.k_end=1.1: choose"),
        ("curriculum.k_begin=nan", "curriculum.k_begin=nan must not be negative"),
        ("seed=-1", "seed=-1 must not be negative"),
        ("seed=99999999999999999999", "seed=99999999999999999999 must be less than 2**31"),
        ("distill.batch_size=0", "distill.batch_size=0 must be greater than 0"),
        ("generator.stages=4", "generator.stages=4 makes images of at least 16x16 pixels and data.image_shape"),
        ("generator.stages=1000000000", "generator.stages=1000000000 must be at most 10"),
        ("generator.stages=-1", "generator.stages=-1 must not be negative"),
        ("data.image_shape=()", "data.image_shape=() must be (height, width, channels)"),
        ("data.num_classes=0", "data.num_classes=0 must be greater than 0"),
        ("data.mean=()", "data.mean=() must have one number for each of 1 channels"),
        ("devices=99", "devices=99 but only "),
        ("distill.temperature=1e-320", "distill.temperature=1e-320 must be 0 or from 1.2e-38 to 1.7e+38"),
        ("curriculum.alpha=1e300", "curriculum.alpha=1e+300 must be 0 or from 1.2e-38 to 1.7e+38"),
        ("data.std=(1e-60,)", "data.std=1e-60 must be 0 or from 1.2e-38 to 1.7e+38; set --config.data.std"),
        (
            "data.image_shape=(2048, 8, 1)",
            "data.image_shape=(2048, 8, 1) must be at most 1024 pixels high and wide",
        ),
        ("data.class_order=numeric", "unknown data.class_order 'numeric'; valid: auto, natural, text, wnids"),
        ("data.class_order=natural", "data.class_order=natural is for data.source=folder; leave it auto for"),
        ("data.padding=2000", "data.padding=2000 must be at most 1024"),
        ("pre_dfkd.memory_steps=1000", "pre_dfkd.memory_steps=1000 must be at most 100"),
        (
            "distill.epochs=1000000000",
            "distill.epochs=1000000000 of rounds_per_epoch=2 with synthesis_steps=1 and student_steps=2 are 6e+09",
        ),
        (
            "memory.every_epochs=2147483647",
            "memory.every_epochs=2147483647 of 4 steps are more than can be counted",
        ),
        ("teacher.epochs=2147483647", "teacher.epochs=2147483647 of 5 steps are more than can be counted; lower"),
        ("teacher.batch_size=5000", "teacher.batch_size=5000 is more than the 1438 training images; lower it"),
        ("teacher.checkpoint=none", "teacher.checkpoint=none is neither a trained network"),
        (
            "data.num_classes=9",
            "digits has 10 classes, but data.num_classes is 9: set --config.data.num_classes=10",
        ),
    ],
)
def test_settings_that_are_wrong(refused, setting, text):
    assert text in refused(f"--config={TINY}", "--workdir=run", f"--config.{setting}")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            ["data.source=none", "data.mean=(78.0,)"],
            "data.mean=(78.0,) without test images; expected numbers in [0, 1]",
        ),
        (["data.source=none", "data.mean=(-0.5,)"], "data.mean=(-0.5,) without test images"),
        (
            ["data.source=none", "data.std=(81.0,)"],
            "Divide those of images in 0..255 by 255, and set",
        ),
        (
            ["data.image_shape=(4, 4, 1)", "teacher.arch=vgg8"],
            "VGG halves images 3 times and data.image_shape is (4, 4, 1); expected at least 8 pixels",
        ),
        (["data.image_shape=(4, 4, 1)", "student.arch=vgg8"], "VGG halves images 3 times"),
    ],
)
def test_settings_that_do_not_fit_each_other(refused, settings, text):
    assert text in refused(f"--config={TINY}", "--workdir=run", *(f"--config.{setting}" for setting in settings))


def test_a_value_of_any_length_is_told_in_a_line_that_can_be_read(refused):
    line = refused(f"--config={TINY}", f"--config.curriculum.strategy={'x' * 10_000}")
    assert line.startswith("cudfkd: error: unknown curriculum.strategy 'xxx") and len(line) < 1100
    assert line.endswith("x'; valid: none, hard, soft, log\n")  # the remedy is not truncated


@pytest.mark.parametrize("arch", ["nonsense", "wrn11_1"])
def test_an_unknown_model_after_the_colon(refused, arch):
    assert f"unknown model '{arch}'" in refused(f"--config={DIGITS}:teacher={arch}")


@pytest.mark.parametrize(("argument", "form"), [("teacher", "teacher=NAME"), ("released=false", "released")])
def test_an_argument_after_the_colon_of_another_form(refused, argument, form):
    assert f"write {form}" in refused(f"--config={DIGITS}:{argument}")


def test_a_value_may_follow_after_a_space(refused):
    error = refused("--config", TINY, "--config.seed", "7", "--workdir", "run", "--config.distill.epochs", "x")
    assert "--config.distill.epochs=x must be a whole number" in error


def test_a_batch_that_the_devices_cannot_share(place):
    done = _subprocess(
        f"--config={TINY}",
        "--config.distill.batch_size=30",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"cudfkd: error: distill.batch_size=30 cannot be divided by 4 devices; set .*\n",
        done.stderr,
    )
    assert list(place.iterdir()) == []


# The workdir, the teacher and the data; see also test_stages.py, test_workdir.py and test_data*.py


def test_a_workdir_that_cannot_be_written(place, refused, monkeypatch):
    (place / "file").touch()
    assert "file is a file; name a folder" in refused(f"--config={TINY}", "--workdir=file/run")
    monkeypatch.setattr("os.access", lambda *args: False)
    assert "is not writable; name a folder you may write to" in refused(f"--config={TINY}", "--workdir=run")


_HOLD = """
import os, sys
from pathlib import Path
from cudfkd_jax.storage import workdir
with workdir.lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_workdir_in_use(run_copy, refused):
    (run_copy / "summary.json").unlink()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, run_copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        error = refused(f"--config={TINY}", f"--workdir={run_copy}")
        holder.kill()
    assert (
        f"is in use by a running process (pid {holder.pid}); wait for it, stop it or name another folder" in error
    )


def test_a_workdir_of_another_configuration(run_copy, refused):
    error = refused(f"--config={TINY}", f"--workdir={run_copy}", "--config.seed=1", "--config.teacher.epochs=3")
    assert (
        "holds a run of another configuration: seed is 0 there and 1 here; teacher.epochs is 1 there and 3"
        in error
    )
    assert "name another --workdir or give the same settings" in error


def test_a_teacher_of_other_images(finished_run, refused):
    error = refused(f"--config={DIGITS}:teacher=wrn10_1", f"--config.teacher.checkpoint={finished_run}")
    assert "has image_shape (8, 8, 1) and the configuration (16, 16, 1)" in error
    assert "--config.teacher.checkpoint" in error


def _images(folder, *classes):
    for split in ("train", "test"):
        for label in classes:
            (folder / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / split / label / "0.png")


def test_unavailable_data(place, refused):
    def error(source, folder, classes=2):
        return refused(
            *(f"--config={TINY}", f"--config.data.source={source}", f"--config.data.dir={folder}"),
            f"--config.data.num_classes={classes}",
        )

    assert "--config.data.dir" in error("folder", "")
    assert "missing does not exist" in error("folder", "missing")
    (place / "empty").mkdir()
    assert "empty" in error("folder", "empty")
    _images(place / "one", "a")
    assert "one has 1 class folders, two at least are needed" in error("folder", "one")
    _images(place / "bad", "a", "b")
    (place / "bad/test/b/1.png").write_bytes(b"no image")
    assert "bad/test/b/1.png" in error("folder", "bad")
    np.savez(place / "wrong.npz", images=np.zeros((2, 8, 8), np.uint8))
    assert "has no array 'x_train', only: images" in error("npz", "wrong.npz")
    tfds = refused(
        *(
            f"--config={TINY}",
            "--config.data.source=tfds",
            "--config.data.name=cifar10",
            "--config.data.dir=empty",
        ),
        *("--config.data.image_shape=(32, 32, 3)", "--config.data.mean=(0.5, 0.5, 0.5)"),
        "--config.data.std=(0.5, 0.5, 0.5)",
    )
    assert "--config.data.source=archive" in tfds  # how to supply it locally


# Valid input


def test_help_is_short_and_names_every_stage(capsys):
    for argument in ("--help", "-h"):
        assert main.main([f"--config={TINY}", argument]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 2 * 50
    assert max(map(len, text.splitlines())) <= 80
    for word in (*stages.STAGES, *formats.FORMATS, "--config", "--stage", "--workdir", "--debug", "usage:"):
        assert word in text


def test_help_as_a_process():
    done = _subprocess("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: cudfkd --config=NAME")


def test_help_does_not_wait_for_jax():
    code = "import sys; from cudfkd_jax import main; main.main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("command", ["compare", "sweep", "reproduce"])
def test_commands_show_their_options_in_80_columns(capsys, command):
    assert main.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"cudfkd {command} " in text and "--workdir=FOLDER" in text
    assert max(map(len, text.splitlines())) <= 80


def test_configurations_are_found_by_name_from_anywhere(place, capsys):
    """The current folder is empty."""
    assert main.main(["configs"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(path.stem for path in Path(DIGITS).parent.glob("*.py"))
    assert loading.load("digits:student=wrn10_1") == loading.load(f"{DIGITS}:student=wrn10_1")
    assert loading.run_name("digits", {}) == loading.run_name(DIGITS, {}) == "digits"


def test_the_version_is_that_of_the_package(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cudfkd_jax {cudfkd_jax.__version__}\n"


def test_debug_adds_the_traceback_and_keeps_the_status(capsys):
    assert main.main([f"--config={TINY}", "--config.seed=-1", "--debug"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)")
    assert error.splitlines()[-1] == "cudfkd: error: seed=-1 must not be negative; set --config.seed"


def test_a_finished_run_says_so_and_does_nothing(run_copy, capsys):
    before = snapshot(run_copy)
    assert main.main([f"--config={TINY}", f"--workdir={run_copy}"]) == 0
    assert f"finished: {run_copy}" in capsys.readouterr().out
    assert snapshot(run_copy) == before


def test_evaluation_needs_only_the_workdir(run_copy, capsys):
    before = snapshot(run_copy)
    assert main.main(["--stage=evaluate", f"--workdir={run_copy}", "--config.evaluation.batch_size=100"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["teacher", "student", "student_best"]
    assert [line.split()[0] for line in lines[:3]] == ["network", "parameters", "acc@1"]
    assert snapshot(run_copy) == before


def test_evaluation_takes_the_runs_own_configuration_and_refuses_another(run_copy, capsys):
    command = ["--stage=evaluate", f"--workdir={run_copy}"]
    assert main.main([*command, f"--config={TINY}"]) == 0
    capsys.readouterr()
    assert main.main([*command, f"--config={TINY}:method=dafl"]) == 2
    error = capsys.readouterr().err
    assert f"{run_copy} holds a run of another configuration" in error and "method is 'cudfkd' there" in error


def test_settings_reach_the_run(monkeypatch):
    called = []
    monkeypatch.setattr(stages, "run", lambda *args: called.append(args))
    settings = ["--config.data.image_shape=(16, 16, 1)", "--config.data.flip", "--noconfig.log.tensorboard"]
    assert main.main([f"--config={TINY}:student=wrn16_1", "--stage=kd", "--config.seed=7", *settings]) == 0
    ((config, stage, folder),) = called
    assert (stage, config.seed, config.student.arch) == ("kd", 7, "wrn16_1")
    assert (config.data.image_shape, config.data.flip, config.log.tensorboard) == ((16, 16, 1), True, False)
    assert config.teacher.arch == tiny.NET
    assert re.fullmatch("runs/tiny-student=wrn16_1-[0-9a-f]{8}", str(folder))


def test_every_default_can_be_given_again(monkeypatch):
    called = []
    monkeypatch.setattr(stages, "run", lambda config, *args: called.append(config))
    known = access.flatten(defaults.get_config())
    assert main.main([f"--config={TINY}", *(f"--config.{key}={value}" for key, value in known.items())]) == 0
    assert access.flatten(called[0]) == known


def test_the_default_workdir_follows_from_the_command(monkeypatch):
    folders = []
    monkeypatch.setattr(stages, "run", lambda config, stage, folder: folders.append(str(folder)))
    for more in ([], ["--config.seed=0"], ["--config.seed=1"], ["--config.seed", "1"], ["--workdir=~/x"]):
        main.main([f"--config={TINY}", *more])
    assert folders[0] == "runs/tiny"
    assert len(set(folders[:4])) == 3
    assert folders[2] == folders[3]
    assert folders[4] == str(Path.home() / "x")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RunFailedError("student step 3 is not finite"), 1, "cudfkd: error: student step 3 is not finite"),
        (
            OSError(28, "No space left on device", "x"),
            1,
            "cudfkd: error: [Errno 28] No space left on device: 'x'; make room, and give the same command again",
        ),
        (OSError(5, "Input/output error", "x"), 1, "cudfkd: error: [Errno 5] Input/output error: 'x'"),
        (StoppedError(signal.SIGTERM), 143, "cudfkd: stopped by SIGTERM; rerun the same command to resume"),
        (KeyboardInterrupt(), 130, "cudfkd: interrupted"),
    ],
)
def test_how_a_run_can_end(monkeypatch, capsys, error, status, text):
    def run(*args):
        raise error

    monkeypatch.setattr(stages, "run", run)
    assert main.main([f"--config={TINY}"]) == status
    assert capsys.readouterr().err == f"{text}\n"


_COMPILE = """
import signal
import time

import jax
from cudfkd_jax import main
from cudfkd_jax.runs import stages

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the tests in the background

def run(*args):
    draw = jax.jit(lambda keys: [jax.random.normal(key, (n,)) for n, key in enumerate(keys, 1)])
    traced = draw.lower(jax.random.split(jax.random.key(0), 20))
    print("compiling", flush=True)
    traced.compile()
    time.sleep(60)  # where the compiler was faster than the signal

stages.run = run
main.console()
"""


def test_ctrl_c_while_jax_compiles_does_not_crash():
    with subprocess.Popen(
        [sys.executable, "-c", _COMPILE, f"--config={TINY}"],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "compiling\n"
        time.sleep(0.2)  # long enough to be inside the compiler, which takes seconds
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "cudfkd: interrupted\n")


@pytest.mark.long
def test_a_stopped_run_reaches_the_same_results(finished_run, place):
    """Interrupts with Ctrl-C, reruns until SIGTERM, reruns to the end, and compares with an uninterrupted run."""
    arguments = [f"--config={TINY}", f"--config.teacher.checkpoint={finished_run}", "--workdir=run"]
    saved = []
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            [sys.executable, "-m", "cudfkd_jax.main", *arguments],
            env=os.environ | {"PYTHONHASHSEED": "1"},  # sets have another order
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            said = ""
            while "distill  epoch" not in said:  # the run is in progress
                line = process.stdout.readline()
                assert line, process.stderr.read()
                said += line
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        assert process.returncode == status
        assert error == f"cudfkd: stopped by {signal.Signals(number).name}; rerun the same command to resume\n"
        assert ("resuming from step" in said) == bool(saved)
        saved.append(max(int(path.name) for path in (place / "run/checkpoints").iterdir() if path.is_dir()))
        assert saved == sorted(set(saved))
        assert not (place / "run/summary.json").exists()
    assert main.main(arguments) == 0
    for name in ("weights.msgpack", "net.json"):
        assert (place / "run/student" / name).read_bytes() == (finished_run / "student" / name).read_bytes()
    assert _without_times(place / "run/metrics.jsonl") == _without_times(finished_run / "metrics.jsonl")


def _without_times(path: Path) -> list[dict[str, float]]:
    times = ("seconds", "evaluation_seconds", "images_per_s")
    return [{key: value for key, value in line.items() if key not in times} for line in records.read(path)]
