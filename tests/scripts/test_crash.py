"""Tests of the campaign of kills: a short campaign, and the detection of differences."""

import json
import shutil

import pytest
import tiny
from helpers import flip_byte

from crash_test import main
from crashing.campaign import Campaign
from crashing.runs import TARGETS, Run


@pytest.mark.slow
def test_a_repeatedly_killed_run_ends_with_the_same_bits(tmp_path, capfd):
    """Kills at any moment, during a save, during compilation, and after the summary."""
    status = main(["--targets=cudfkd", "--kills=4", "--signals=0", f"--workdir={tmp_path}"])
    said = capfd.readouterr().out
    assert status == 0 and "cudfkd: 4 kills" in said and "0 failures" in said, said


def _change_record(path):
    lines = path.read_text().splitlines()
    record = json.loads(lines[3])
    lines[3] = json.dumps(record | {"student_loss": record["student_loss"] + 1e-15})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("student/weights.msgpack", flip_byte),
        ("student_best/net.json", lambda path: path.unlink()),
        ("teacher/net/weights.msgpack", flip_byte),
        ("metrics.jsonl", _change_record),
        ("summary.json", lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 1}))),
        ("report.html", lambda path: path.unlink()),
    ],
)
def test_a_difference_is_noticed_and_named(finished_run, tmp_path, capfd, name, change):
    run = Run(TARGETS["cudfkd"], tiny.__file__, tmp_path / "cudfkd/0")
    shutil.copytree(finished_run, run.folder)
    campaign = Campaign(tiny.__file__, tmp_path, seed=0)
    campaign._expected["cudfkd"] = run.outcome()
    campaign._compare("cudfkd", run)
    assert campaign.failures == 0
    change(run.folder / name)
    campaign._compare("cudfkd", run)
    assert campaign.failures == 1 and f"{name} differs" in capfd.readouterr().out
