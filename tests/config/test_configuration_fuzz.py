"""Any configuration passes the checks and traces, or is refused with one line, before anything is written.

    CONFIGURATIONS=1000 python -m pytest tests/config/test_configuration_fuzz.py -k traces_or
    CONFIGURATIONS_RUN=20 python -m pytest tests/config/test_configuration_fuzz.py -k really_runs

try a thousand, new ones each time, and run twenty; without it, few and always the same ones.
"""

import contextlib
import io
import os
import random
import re
from pathlib import Path

import any_settings
import jax
import numpy as np
import pytest
import tiny
from helpers import snapshot
from hypothesis import HealthCheck, event, given, settings

from cudfkd_jax import data, main
from cudfkd_jax.config import access, defaults, networks
from cudfkd_jax.data import Dataset, Split
from cudfkd_jax.runs import stages
from cudfkd_jax.storage import weights

_TRIED, _RUN = int(os.environ.get("CONFIGURATIONS", "0")), int(os.environ.get("CONFIGURATIONS_RUN", "1"))
_IMAGES = 300


class _PassedError(BaseException):
    """The command would now begin to write."""


def _data(request):
    """Images of whatever shape and number of classes is asked for: files have tests of their own."""
    shape = (_IMAGES, *request.image_shape)
    if np.prod(shape) < 10**6:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    else:
        images = np.broadcast_to(np.uint8(200), shape)
    split = Split(images, np.arange(_IMAGES, dtype=np.int32) % request.num_classes)
    return Dataset(request.num_classes, (), request.image_shape, dict.fromkeys(request.splits, split))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory that holds a teacher, untrained."""
    folder = tmp_path_factory.mktemp("fuzz")
    jax.devices()  # from here on JAX refuses to look for other processes
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parents[1] / "support"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "SOURCES", dict.fromkeys(data.SOURCES, _data))
        config = tiny.get_config()
        net = networks.described(config, "teacher")
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), net.abstract_variables())
        weights.save_net(folder / "teacher", net, ones)
        yield folder


def _with_teacher(arguments):
    needs_one = arguments[1] in ("--stage=kd", "--stage=distill")
    given = any(argument.startswith("--config.teacher.checkpoint=") for argument in arguments)
    return [*arguments, "--config.teacher.checkpoint=teacher"] if needs_one and not given else arguments


def _call(arguments):
    """Exit status, output and errors of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(arguments)
    return status, out.getvalue(), err.getvalue()


def _refusal(arguments):
    """What the command says against the arguments; None where it would begin to write."""

    def passed(*arguments):
        raise _PassedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_locked", passed)
        try:
            status, out, err = _call(arguments)
        except _PassedError:
            return None
    assert (status, out) == (2, ""), err
    return err


def test_every_setting_has_values():
    known = access.flatten(defaults.get_config())
    assert any_settings.SENSIBLE.keys() == known.keys(), "give a new setting values in any_settings.py"
    for key, values in any_settings.SENSIBLE.items():
        assert values and {type(value) for value in values} == {type(known[key])}, key


@settings(
    max_examples=_TRIED or 15,
    derandomize=not _TRIED,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(arguments=any_settings.commands())
def test_any_configuration_traces_or_is_refused_with_one_line(place, arguments):
    before = snapshot(place)
    refusal = _refusal(_with_teacher(arguments))
    assert snapshot(place) == before
    event("traced" if refusal is None else "refused")
    assert refusal is None or re.fullmatch(r"cudfkd: error: [^\n]{10,1100}\n", refusal), refusal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(_RUN))
def test_a_configuration_that_traces_really_runs(place, tmp_path, seed):
    """Two rounds of a student, or an epoch with data; numbers may become NaN, which is one line too."""
    draw = random.Random(seed)
    trained = [f"--config.{section}.epochs=1" for section in ("teacher", "scratch", "kd")]
    rounds = ["--config.distill.epochs=2", "--config.distill.rounds_per_epoch=1"]
    while _refusal(arguments := [*_with_teacher(any_settings.sensible_command(draw)), *trained, *rounds]):
        pass
    status, out, err = _call([*arguments, f"--workdir={tmp_path / 'run'}"])
    said = [line for line in err.splitlines() if line.startswith("cudfkd: ")]
    if status == 0:
        assert not said and f"finished: {tmp_path / 'run'}" in out, arguments
        assert list((tmp_path / "run").rglob("summary.json"))
    else:
        assert status == 1 and len(said) == 1 and "is not finite" in said[0], (arguments, err)
