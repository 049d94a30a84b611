"""Methods outside the package: the example of docs/own_method.md, and one with neither state nor metrics."""

import json
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tiny
from helpers import snapshot

from cudfkd_jax import main
from cudfkd_jax.config import access, identity, loading, validate
from cudfkd_jax.experiments.reproduce import catalogue
from cudfkd_jax.experiments.reproduce.entry import with_method
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.report import tables
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.errors import UserError

_ROOT = Path(__file__).parents[2]
_OWN = "my_package.boundary:SPEC"


@pytest.fixture(name="package", autouse=True)
def _package(tmp_path, monkeypatch):
    """The example, where Python and the programs that it starts find it."""
    code = re.search(r"```python\n(.*?)```", (_ROOT / "docs/own_method.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    module = tmp_path / "here/my_package/boundary.py"
    module.parent.mkdir(parents=True)
    module.write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(module.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(module.parents[1]), os.environ["PYTHONPATH"]]))
    yield
    for name in ("my_package.boundary", "my_package"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_example_is_compared_with_a_method_of_the_package(tmp_path, capsys):
    """Runs the command line that users give: one teacher and two students; rerun, it finds all results."""
    folder = tmp_path / "compare"
    arguments = [
        "compare",
        f"--config={tiny.__file__}",
        f"--methods=cudfkd,{_OWN}",
        "--seeds=3",
        f"--workdir={folder}",
    ]
    assert main.main(arguments) == 0
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and "| cudfkd | 1/1 |" in table and "| boundary | 1/1 |" in table
    runs = [folder / method / "seed_3" for method in ("cudfkd", "boundary")]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert {summary["seed"] for summary in summaries} == {3}
    assert summaries[0]["teacher"] == summaries[1]["teacher"]
    record = json.loads((runs[1] / "metrics.jsonl").read_text().splitlines()[0])
    assert {"margin_loss", "bn_loss", "student_loss", "acc1"} <= record.keys()
    assert loading.read_config(runs[1]).boundary.margin_weight == 0.1
    before = {name: value for name, value in snapshot(folder).items() if "seed_3" in name or "teacher" in name}
    assert main.main(arguments) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert {name: value for name, value in snapshot(folder).items() if name in before} == before


def test_its_settings_are_checked_and_identify_its_runs():
    config = loading.load(f"{tiny.__file__}:method={_OWN}")
    assert config.distill.temperature == 4.0
    before = identity.result_settings(config, "distill")
    config.boundary.margin_weight = 0.3
    assert identity.result_settings(config, "distill") != before
    config.boundary.margin_weight = -1.0
    with pytest.raises(UserError, match=r"boundary\.margin_weight=-1\.0 must not be negative; set --config"):
        validate.check(config)
    given = loading.from_settings({"method": _OWN, "boundary.margin_weight": 0.5})
    assert given.boundary.margin_weight == 0.5 and given.distill.temperature == 4.0
    assert "boundary.margin_weight" not in access.flatten(loading.load(tiny.__file__))


def test_its_run_is_repeated_from_the_report(tmp_path):
    config = loading.load(f"{tiny.__file__}:method={_OWN}")
    loading.override(config, ["--config.boundary.margin_weight=0.3"])
    file = tmp_path / "config.py"
    file.write_text(tables.configuration_file(SimpleNamespace(config=access.flatten(config))))
    again = runpy.run_path(str(file))["get_config"]()
    assert access.flatten(again) == access.flatten(config) and again.boundary.margin_weight == 0.3


def test_it_is_another_row_of_a_table():
    entry = with_method(catalogue.ENTRIES["table2"], "digits", _OWN)
    added = [run for run in entry.scales["digits"].runs if run.row == "Boundary"]
    assert [run.seed for run in added] == [0, 1, 2]
    assert {run.config for run in added} == {f"digits:teacher=wrn16_2,student=wrn16_1,method={_OWN}"}
    with pytest.raises(UserError, match="the rows of fig6 are not methods"):
        with_method(catalogue.ENTRIES["fig6"], "digits", _OWN)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my_package.boundary:SPEK", r"my_package\.boundary holds no 'SPEK' \(did you mean 'SPEC'\?\)"),
        ("my_package.nothing:SPEC", "cannot import 'my_package.nothing'"),
        ("my_package.boundary:margin", "is a function, not a cudfkd_jax.methods.base.MethodSpec"),
        ("boundary", r"unknown method 'boundary'.*valid: cudfkd, dafl"),
        ("test_own_method:TAKEN", "has the name 'cudfkd'"),
        ("test_own_method:SECTION", "has the name 'data'"),
    ],
)
def test_what_is_no_method_is_refused(name, text):
    with pytest.raises(UserError, match=text):
        loading.load(f"{tiny.__file__}:method={name}")


def _noise(context) -> Method:
    """Returns a method that has no state, no synthesis and no metrics: the student sees uniform noise."""

    def sample(aux, teacher, key, axis):
        return axis.shard(jax.random.uniform(key, (context.distill.batch_size, *context.data.image_shape)))

    def student_loss(student, teacher, aux, step, axis) -> tuple[jax.Array, Metrics]:
        return jnp.mean((student.value - teacher.value) ** 2), {}

    def preview(aux, key, count):
        return jax.random.uniform(key, (count, *context.data.image_shape))

    return Method(lambda key: {}, lambda aux, *given: (aux, {}), sample, student_loss, preview)


NOISE = MethodSpec(name="noise", label="Noise", build=_noise)
TAKEN = MethodSpec(name="cudfkd", label="mine", build=_noise)
SECTION = MethodSpec(name="data", label="mine", build=_noise)


@pytest.mark.long
def test_a_method_may_have_neither_state_nor_metrics(finished_run, tmp_path):
    config = tiny.get_config("method=test_own_method:NOISE")
    changes = {"teacher.checkpoint": str(finished_run), "distill.epochs": 2, "log.report": True}
    config.update_from_flattened_dict(changes)
    stages.run(config, "distill", tmp_path / "run", say=lambda text: None)
    assert (tmp_path / "run/report.html").exists()
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[1])
    assert "acc1" in record and "synthesis_loss" not in record
