"""Tests of signals: each that means to stop is noted, and an ignored one stays ignored."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cudfkd_jax.runtime.errors import StoppedError
from cudfkd_jax.runtime.signals import Signals, Watch, raise_on_signals


@pytest.fixture(autouse=True)
def _not_ignored():
    """SIGHUP is ignored where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_saves_and_stops(number):
    before = signal.getsignal(number)
    with Signals() as signals:
        watch = Watch(signals, lambda at_epoch_end: False)
        assert not watch.interrupts()
        os.kill(os.getpid(), number)
        assert watch.interrupts()
        with pytest.raises(StoppedError, match=f"stopped by {number.name}; rerun"):
            watch.stop_if_told()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_stops_what_waits_for_runs(number):
    with pytest.raises(StoppedError) as caught, raise_on_signals():
        os.kill(os.getpid(), number)
    assert caught.value.number == number


@pytest.mark.parametrize("context", [Signals, raise_on_signals])
def test_what_nohup_ignores_stays_ignored(context):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with context() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert getattr(signals, "received", None) is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_ctrl_c_is_answered_and_the_second_interrupts():
    answered = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="quit without saving; rerun"), Signals(answered.set) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert answered.wait(10)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)  # as of the command that started it
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before and signal.set_wakeup_fd(-1) == -1


_BUSY = """
import hashlib
from cudfkd_jax.runtime import signals

signals.end_process_at_second_interrupt()
with signals.Signals(lambda: print("stopping", flush=True)):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as compiled code, runs no handlers: for minutes
"""


def test_compiled_code_delays_neither_the_answer_nor_the_end():
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert error == "cudfkd: quit without saving; rerun the same command to resume from its last checkpoint\n"
