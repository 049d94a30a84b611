"""The fuzzing of files: a short campaign, and that it finds what it looks for."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cudfkd_jax.errors import UserError

_SCRIPT = Path(__file__).parents[1] / "scripts/fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Sent(list):
    def send(self, message):
        self.append(message)


def _run(fuzz, monkeypatch, read, cases=10):
    """What one reader of a ten-byte file comes to."""

    def make(folder):
        (folder / "file").write_bytes(b"0123456789")
        return folder / "file"

    monkeypatch.setitem(fuzz.READERS, "it", fuzz.Reader(make, read))
    monkeypatch.setattr(fuzz, "_limit_memory", lambda mib: None)
    monkeypatch.setenv("XDG_CACHE_HOME", "unused")
    sent = _Sent()
    fuzz.run_reader("it", cases, 0, 100, sent)
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
def test_outcomes(fuzz, monkeypatch, read, outcome):
    found = _run(fuzz, monkeypatch, read)
    assert outcome in {o for o, _ in found} <= {outcome, "read"}  # some mutations change nothing


def test_a_real_file_that_is_refused_is_a_failure(fuzz, monkeypatch):
    def refuse(path):
        raise UserError("always")

    assert _run(fuzz, monkeypatch, refuse)[0][0] == "as written: refused"


def test_mutations_change_what_they_are_given(fuzz):
    draw = random.Random(0)
    contents = [b"x", b'{"a": [1, 2], "b": {"c": "d"}}', bytes(range(256)) * 4]
    changed = [fuzz.mutate(content, draw, b"other") != content for content in contents for _ in range(50)]
    assert sum(changed) > 120


@pytest.mark.slow
def test_a_short_campaign():
    command = [sys.executable, str(_SCRIPT), "--cases=60", "--seed=1", "--readers=npz,run-resumed,net-mended"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("all                     60 ")


def test_an_unknown_reader_is_refused(fuzz, capsys):
    with pytest.raises(SystemExit):
        fuzz.main(["--readers=npz,none"])
    assert "unknown reader 'none'; valid: all, pth, " in capsys.readouterr().err
