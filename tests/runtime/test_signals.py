"""Tests of signals: each that means to stop is noted, and an ignored one stays ignored."""

import os
import signal

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
