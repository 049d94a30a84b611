"""CIFAR-10 on a CPU, WRN-16-2 → WRN-16-1: a teacher in an hour, and each method with 6,000 student steps.

    python -m cudfkd_jax.main --config=configs/cifar10_cpu.py --config.data.dir=data/cifar10_jpeg
    python scripts/reproduce.py table2 --scale=cifar10_cpu --config.data.dir=data/cifar10_jpeg

Settings are those of `configs/cifar10.py` for WRN teachers, a run being 60 epochs of 100 student steps at batch
64 in the place of 250 of 400 at 1,024. Schedules are compressed with the run and pass through the same values:
λ(t) and α_adv(t) get steeper slopes, which follow `distill.epochs`; cosines and the ramp's ends follow anyway.
Steps are computed in bfloat16: 2 cores with AMX take 17 minutes for a generator's run, elsewhere
`--config.compute_dtype=float32` is faster. Images are read from folders (train/<class>/*, test/<class>/*).

The teacher: 30 epochs at batch 64, Nesterov SGD, a warm-up of one epoch to 0.05 and a cosine to 0, crops and
flips; 65 to 80 minutes. `noisy` is another one, of at most 15 epochs, whose training ends at the first one with
88 % on the test images. After the colon may also stand `teacher=`, `student=`, `method=`, `released` and
`runlocal` (one epoch of teacher, three of distillation).
"""

import runpy
from pathlib import Path

from cudfkd_jax import defaults

_EPOCHS, _STUDENT_STEPS, _BATCH = 60, 100, 64
_NOISY_ACCURACY, _NOISY_EPOCHS = 88.0, 15
# ADI and CMI synthesise one batch per epoch, in as many steps as keep a run below two hours.
_SYNTHESIS_STEPS, _SYNTHESIS_BATCH = {"adi": 400, "cmi": 200}, 256
# Adam's rate falls with the root of the batch, 1,024 in the releases.
_GENERATOR_RATES = {"mb_dfkd": 0.005, "pre_dfkd": 0.005}


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    cifar10 = runpy.run_path(str(Path(__file__).with_name("cifar10.py")))["get_config"]
    config = cifar10(f"teacher=wrn16_2,student=wrn16_1,{arguments}")
    config.compute_dtype = "bfloat16"
    config.data.source = "folder"
    defaults.train_for(config, epochs=30, batch_size=_BATCH, learning_rate=0.05, warmup_epochs=1.0)
    if "noisy" in chosen:
        config.teacher.update(stop_accuracy=_NOISY_ACCURACY, epochs=_NOISY_EPOCHS)
    _shorten(config)
    if "runlocal" in chosen:
        defaults.train_for(config, epochs=1)
        config.distill.epochs = 3
    return config


def _shorten(config):
    """Gives any method 60 epochs of 100 student steps, and CuDFKD's schedules the same course over them."""
    d, c = config.distill, config.curriculum
    lambda_end = c.lambda_slope * _steps(d).get()
    alpha_end = c.alpha * d.epochs
    synthesis_steps = _SYNTHESIS_STEPS.get(config.method, 0)
    defaults.scale_steps(config, student_steps=_STUDENT_STEPS, synthesis_steps=synthesis_steps, batch_size=_BATCH)
    d.epochs = _EPOCHS
    if config.method == "cudfkd":
        # References, so that they follow runs of another length.
        c.lambda_slope = lambda_end / _steps(d).to_float()
        c.alpha = alpha_end / d.get_ref("epochs").to_float()
    if synthesis_steps:
        config.synthesis.batch_size = _SYNTHESIS_BATCH
    config.generator.learning_rate = _GENERATOR_RATES.get(config.method, config.generator.learning_rate)
    # A quarter of the release's, for a pool of 15,360 images in the place of 51,200.
    config.cmi.update(bank_rows=10240, bank_draws=1024)
    config.memory.every_epochs = 1
    config.evaluation.update(every_epochs=2, stability_from=(d.get_ref("epochs") * 0.32).to_int() + 1)


def _steps(distill):
    """The student steps of a run, as a reference."""
    return distill.get_ref("epochs") * distill.get_ref("rounds_per_epoch") * distill.get_ref("student_steps")
