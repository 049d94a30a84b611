"""What tests of whole runs share: a tiny configuration, and one finished run of it."""

import fcntl
import os
import shutil
from collections import Counter
from pathlib import Path

# Programs that tests start find the helpers, too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Most of the time goes into compiling programs that run for a moment; without optimisation it is almost halved.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Compiled programs are kept between tests, their subprocesses and calls of pytest; JAX reads this when imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import psutil
import pytest
import tiny

from cudfkd_jax.runs import stages


@pytest.fixture
def tiny_config():
    """The ConfigDict of `tiny.py`, free to be changed."""
    return tiny.get_config()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The workdir of a finished tiny run; copy it (`run_copy`) before changing anything in it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "finished.lock").open("w") as lock:  # the first worker trains, the others find it finished
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = tiny.get_config()
        config.log.report = True
        stages.run(config, "all", shared / "finished", say=lambda text: None)
    return shared / "finished"


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    """A copy of the finished run, with the times of its files."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module", autouse=True)
def _memory():
    """Frees compiled programs between files where they have taken two gigabytes."""
    yield
    if psutil.Process().memory_info().rss > 2 * 2**30:
        jax.clear_caches()


@pytest.hookimpl(trylast=True)  # after -m has dropped what is not run
def pytest_collection_modifyitems(items):
    """Files with the most long tests first, so that workers, which take one file at a time, end together."""
    long = Counter(item.path for item in items if {"long", "slow"} & {mark.name for mark in item.iter_markers()})
    items.sort(key=lambda item: -long[item.path])
