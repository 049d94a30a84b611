"""Checks that checkpoints inside epochs change nothing; `test_crash.py` covers kills at any moment."""

import pytest
from helpers import outcome

from cudfkd_jax.runs import stages
from cudfkd_jax.storage import checkpoint


@pytest.mark.slow  # each method's steps are resumed in its own tests, and a command line in test_cli
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])  # for which some CPUs run different programs
def test_saving_inside_epochs_changes_nothing(finished_run, tiny_config, tmp_path, compute_dtype):
    tiny_config.compute_dtype = compute_dtype
    tiny_config.teacher.checkpoint, tiny_config.distill.epochs = str(finished_run), 2
    for name, seconds in (("ends", 0.0), ("every_step", 1e-6)):
        tiny_config.checkpoint.update(every_seconds=seconds, keep=100)
        stages.run(tiny_config, "distill", tmp_path / name, say=lambda text: None)
    d = tiny_config.distill
    steps_per_epoch = d.rounds_per_epoch * (d.synthesis_steps + d.student_steps)
    saved = {
        name: [int(path.name) for path in checkpoint.checkpoints(tmp_path / name / "checkpoints")]
        for name in ("ends", "every_step")
    }
    steps = d.epochs * steps_per_epoch
    assert saved["ends"] == list(range(steps_per_epoch, steps + 1, steps_per_epoch))
    assert saved["every_step"] == list(range(1, steps + 1))
    assert outcome(tmp_path / "ends") == outcome(tmp_path / "every_step")
