"""Tests of a run's progress: the estimate of its end, its lines, and its bar on a terminal of 80 columns."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import time

import jax
import pytest

from cudfkd_jax.runtime.compilation import CompilationClock, compilation_clock
from cudfkd_jax.training import progress
from cudfkd_jax.training.progress import Progress, TimeLeft

RECORD = {
    "student_loss": 0.60568,
    "synthesis_loss": 36.96,
    "acc1": 98.607,
    "acc5": 100.0,
    "agree1": 98.886,
    "loyalty": 0.9,
    "seconds": 3.0,
    "evaluation_seconds": 1.0,
}


class _Clock:
    """A compilation clock that the test moves."""

    def __init__(self):
        self.now = self.compiled = 0.0

    def seconds(self):
        return self.compiled

    def working(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "compilation_clock", lambda: clock)
    return clock


@pytest.mark.parametrize(("seconds", "said"), [(0.5, []), (10.0, ["distill  about 3 min 10 s left, until "])])
def test_the_end_of_a_long_stage_is_announced_once(clock, capsys, seconds, said):
    with Progress("distill", epochs=2, steps_per_epoch=10, first_step=0, tensorboard=None) as shown:
        for step in range(1, 6):
            clock.now += seconds
            shown.step(step)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub("[A-Z][a-z]{2} [0-9]{2}:[0-9]{2}$", "", line) for line in lines] == said


# Compilation


def test_compilation_within_compilation_counts_once():
    clock = CompilationClock()
    clock.add(1.0, end=11.0)  # inside the next one
    clock.add(1.0, end=13.0)
    clock.add(4.0, end=14.0)  # from 10 to 14
    clock.add(2.0, end=20.0)
    clock.add(3.0, end=21.0)  # from 18 to 21
    assert clock.seconds() == pytest.approx(4 + 3)
    clock.add(2.0, end=22.0)  # of another thread, from 20 to 22
    assert clock.seconds() == pytest.approx(4 + 4)


def test_the_clock_sees_what_jax_compiles():
    clock = compilation_clock()
    before, start = clock.seconds(), time.monotonic()
    function = jax.jit(lambda x: jax.numpy.sin(x) * before)
    function(1.0)
    compiled = clock.seconds() - before
    assert 0 < compiled <= time.monotonic() - start
    function(2.0)  # is compiled
    assert clock.seconds() - before == compiled


# Time left


def test_the_time_left_follows_from_whole_rounds():
    clock = _Clock()
    left = TimeLeft(100, 10, clock.working)
    left.measure(0)
    clock.now = 7.0  # synthesis, and the first student step
    left.measure(1)
    assert left.seconds() is None
    clock.now = 8.0
    left.measure(10)
    assert left.seconds() == pytest.approx(90 * 0.8)
    clock.now = 10.0
    assert left.seconds() == pytest.approx(90 * 0.8 - 2)
    clock.now = 18.0  # a slower one
    left.measure(20)
    assert left.seconds() == pytest.approx(80 * 0.9)


def test_a_resumed_run_measures_its_own_rounds_alone():
    clock = _Clock()
    left = TimeLeft(100, 10, clock.working)
    left.measure(43)  # inside a round
    clock.now = 50.0
    left.measure(50)
    assert left.seconds() is None
    clock.now = 60.0
    left.measure(60)
    assert left.seconds() == pytest.approx(40)
    left.measure(20)  # rolled back
    assert left.seconds() == pytest.approx(80)


# Lines


def _progress(**options):
    settings = {"epochs": 15, "steps_per_epoch": 100, "steps_per_round": 100, "first_step": 0, "tensorboard": None}
    return Progress("distill", **(settings | options))


def test_each_epoch_is_a_line_with_accuracy_and_agreement_first(clock, capsys):
    with _progress() as shown:
        clock.compiled += 7.4
        for epoch in (1, 2):
            clock.now += 3.9
            shown.step(100 * epoch)
            shown.epoch({"epoch": epoch, **RECORD})
    assert capsys.readouterr().out.splitlines() == [
        "distill  compiled in 7 s",
        "distill  epoch  1/15  acc@1  98.61 %  agree@1  98.89 %  loss 0.606  3.9 s, 55 s left",
        "distill  epoch  2/15  acc@1  98.61 %  agree@1  98.89 %  loss 0.606  3.9 s, 51 s left",
    ]


def test_programs_from_the_cache_are_not_worth_a_line(clock, capsys):
    with _progress(first_step=1400) as shown:
        clock.compiled, clock.now = 0.4, 90.0
        shown.step(1500)
        shown.epoch({"epoch": 15, "agree1_synthetic": 86.1, "loss": 1e-5})
    line = "distill  epoch 15/15  synthetic agree@1  86.10 %  loss 1e-05  1 min 30 s\n"
    assert capsys.readouterr().out == line


# The bar


def _lines(text):
    return [shown.rstrip() for shown in re.split("[\r\n]+|\x1b\\[A", text) if shown.strip()]


@contextlib.contextmanager
def _terminal():
    """Makes stdout and stderr a terminal of 80 columns; returns a function that reads all that it has shown."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    stream = io.TextIOWrapper(os.fdopen(follower, "wb", buffering=0), encoding="utf-8", write_through=True)
    os.set_blocking(leader, False)

    text = bytearray()

    def read() -> str:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(leader, 65536):
                text.extend(more)
        return text.decode(errors="ignore")  # the bar may be half written

    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield read
    stream.close()
    os.close(leader)


def test_the_bar_fits_80_columns_and_keeps_a_line_per_epoch(clock, monkeypatch):
    monkeypatch.setattr(progress, "_REDRAW_S", 0.01)
    with _terminal() as terminal:
        _check_a_stage(clock, terminal)
        assert re.search(r"\r +\r$", terminal())  # no bar stays of a stage that is over


def _check_a_stage(clock, terminal):
    with _progress(epochs=250, steps_per_round=50) as shown:
        _wait(lambda: re.match(r"distill  epoch   1/250  \|.*\| compiling \d+ s$", _lines(terminal())[-1]))
        clock.compiled += 7.4
        for epoch in range(1, 101):
            for half in (1, 2):
                clock.now += 40
                shown.step(100 * epoch + 50 * half - 100)
            shown.epoch({"epoch": epoch, **RECORD})
            terminal()  # before it is full
        bar = r"distill  epoch 101/250  acc@1 98.6 %  agree@1 98.9 %  \|.{5,}\| 3 h 20 min left"
        _wait(lambda: re.fullmatch(bar, _lines(terminal())[-1]))
        lines = _lines(terminal())
        assert max(map(len, lines)) <= 80
        assert "distill  compiled in 7 s" in lines
        for epoch in range(1, 101):
            line = f"distill  epoch {epoch:3}/250  acc@1  98.61 %  agree@1  98.89 %  loss 0.606  1 min 20 s"
            assert line in lines


def _wait(condition):
    """Waits for the thread that draws the bar."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_bar_that_stops_in_the_middle_stays(clock):
    with _terminal() as terminal:
        with pytest.raises(KeyboardInterrupt), _progress() as shown:
            shown.step(30)
            raise KeyboardInterrupt
        assert _lines(terminal())[-1].startswith("distill  epoch  1/15  |")
