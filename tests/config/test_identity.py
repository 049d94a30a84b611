"""What identifies a run: finished ones keep their names and go on, also after settings were added."""

import json
import runpy
from pathlib import Path

import pytest

from cudfkd_jax.config import access, defaults, identity, loading
from cudfkd_jax.experiments import plan
from cudfkd_jax.experiments.plan import RunSpec
from cudfkd_jax.methods import METHODS
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir

CONFIGS = Path(__file__).parents[2] / "configs"
MASK = "synthesis.adversarial_mask"

# Of the settings that identify a run, on 2026-11-26 (commit 29ba295): none of these may ever change.
RECORDED = {
    ("digits", "", "teacher"): "78fa8171cfe9",
    ("digits", "", "scratch"): "14e23804f8d7",
    ("digits", "", "kd"): "2a7ca7db5403",
    ("digits", "", "distill"): "e144e90de7a9",
    ("digits", "released", "distill"): "b52070a47a11",
    ("digits", "method=dafl", "distill"): "954d7475528a",
    ("digits", "method=zskt", "distill"): "fe98cba42829",
    ("digits", "method=dfad", "distill"): "644a78e4a5d0",
    ("digits", "method=dfq", "distill"): "fa16f67005a9",
    ("digits", "method=adi", "distill"): "061dfad57250",
    ("digits", "method=cmi", "distill"): "34db0caf3d90",
    ("digits", "method=mb_dfkd", "distill"): "3614c11e9419",
    ("digits", "method=pre_dfkd", "distill"): "1317f1b7a9d4",
    ("cifar10", "", "teacher"): "5b08816553c6",
    ("cifar10", "", "distill"): "7b36ed3cb377",
    ("cifar10", "released", "distill"): "42054f421fe2",
    ("cifar10", "method=zskt", "distill"): "a50db3fe50c1",
    ("cifar10", "method=dfq", "distill"): "925c4ae57f39",
    ("cifar100", "", "distill"): "e680e7bc1b48",
}


def _load(name: str, arguments: str = ""):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arguments)


@pytest.mark.parametrize(("data", "arguments", "stage"), RECORDED)
def test_runs_keep_what_identifies_them(data, arguments, stage):
    found = loading.digest(identity.result_settings(_load(data, arguments), stage))
    assert found.startswith(RECORDED[data, arguments, stage])


def test_a_planned_run_keeps_its_name(tmp_path):
    """That of the digits' default, beside the teacher that it would train."""
    (planned,) = plan.plan([RunSpec("run", str(CONFIGS / "digits.py"), ())], tmp_path)
    assert planned.teacher is not None
    assert planned.teacher.folder == tmp_path / "teachers" / "78fa8171cfe9"
    assert planned.cell.folder == tmp_path / "cells" / "b3b9c139e7de"


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"adadfkd", "fastdfkd"}))  # newer than these settings
def test_a_setting_added_later_is_left_out_at_what_earlier_runs_computed(method):
    config = _load("digits", "" if method == "cudfkd" else f"method={method}")
    for key, values in identity._ADDED_LATER.items():
        assert access.get(defaults.get_config(), key) in values
        assert key not in identity.result_settings(config, "distill")
    config.synthesis.adversarial_mask = "none"
    assert identity.result_settings(config, "distill")[MASK] == "none"


def test_the_order_of_earlier_runs_identifies_them_also_where_it_is_asked_for():
    config = _load("tiny_imagenet")
    before = {stage: identity.result_settings(config, stage) for stage in ("teacher", "distill")}
    for order, same in (("text", True), ("natural", False), ("wnids", False)):
        config.data.class_order = order
        for stage, settings in before.items():
            assert (identity.result_settings(config, stage) == settings) == same
    config.data.update(class_order="auto", resize=True)
    assert identity.result_settings(config, "teacher") == before["teacher"] | {"data.resize": True}


def test_an_earlier_run_goes_on_and_refuses_another_value_of_a_later_setting(tmp_path):
    """The folder holds a run of before the setting was there."""
    config = _load("digits")
    before = identity.result_settings(config, "distill")
    whole = {key: value for key, value in access.flatten(config).items() if key != MASK}
    assert MASK not in before
    workdir.write_config(tmp_path, before, whole)
    assert MASK not in json.loads((tmp_path / workdir.CONFIG).read_text())["config"]
    workdir.check_config(tmp_path, identity.result_settings(config, "distill"))
    config.synthesis.adversarial_mask = "none"
    with pytest.raises(UserError, match=rf"another configuration: {MASK} is unset there and 'none' here; name"):
        workdir.check_config(tmp_path, identity.result_settings(config, "distill"))
