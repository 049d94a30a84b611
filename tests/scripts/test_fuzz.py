"""Tests of the fuzzing of files: a short campaign, and the detection of failures."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from cudfkd_jax.runtime.errors import UserError
from fuzzing import campaign, mutations, readers

_SCRIPT = Path(__file__).parents[2] / "scripts/fuzz.py"


class _Sent(list):
    def send(self, message):
        self.append(message)


def _run(monkeypatch, read, cases=10):
    """Returns the outcomes of a reader of a ten-byte file."""

    def make(folder):
        (folder / "file").write_bytes(b"0123456789")
        return folder / "file"

    monkeypatch.setitem(readers.READERS, "it", readers.Reader(make, read))
    monkeypatch.setattr(campaign, "_limit_memory", lambda mib: None)
    monkeypatch.setenv("XDG_CACHE_HOME", "unused")
    sent = _Sent()
    campaign.run_reader("it", cases, 0, 100, sent)
    return [(outcome, detail) for case, outcome, detail in filter(None, sent) if outcome != "begun"]


def _raising(error, *, cause=None):
    def read(path):
        if path.read_bytes() != b"0123456789":
            raise error from cause

    return read


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_raising(UserError("a line")), "refused"),
        (_raising(UserError("two\nlines")), "more than a line"),
        (_raising(ValueError("any other")), "exception"),
        (_raising(MemoryError()), "memory"),
        (_raising(UserError("a line"), cause=MemoryError()), "memory"),
        (lambda path: (path.parent / "beside").touch(), "wrote outside"),
        (lambda path: None, "read"),
    ],
)
def test_outcomes(monkeypatch, read, outcome):
    found = _run(monkeypatch, read)
    assert outcome in {o for o, _ in found} <= {outcome, "read"}  # some mutations have no effect


def test_a_real_file_that_is_refused_is_a_failure(monkeypatch):
    def refuse(path):
        raise UserError("always")

    assert _run(monkeypatch, refuse)[0][0] == "as written: refused"


def test_mutations_change_what_they_are_given():
    draw = random.Random(0)
    contents = [b"x", b'{"a": [1, 2], "b": {"c": "d"}}', bytes(range(256)) * 4]
    changed = [mutations.mutate(content, draw, b"other") != content for content in contents for _ in range(50)]
    assert sum(changed) > 120


@pytest.mark.slow
def test_a_short_campaign():
    command = [sys.executable, str(_SCRIPT), "--cases=60", "--seed=1", "--readers=npz,run-resumed,net-mended"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("all                     60 ")


def test_an_unknown_reader_is_refused(capsys):
    with pytest.raises(SystemExit):
        fuzz.main(["--readers=npz,none"])
    assert "unknown reader 'none'; valid: all, pth, " in capsys.readouterr().err
