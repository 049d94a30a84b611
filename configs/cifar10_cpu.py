"""CIFAR-10 on a CPU, WRN-16-2 → WRN-16-1: a teacher in about an hour, and 6,000 student steps per method.

    python -m cudfkd_jax.main --config=configs/cifar10_cpu.py --config.data.dir=data/cifar10_jpeg
    python scripts/reproduce.py table2 --scale=cifar10_cpu --config.data.dir=data/cifar10_jpeg

The settings are those of `configs/cifar10.py` for WRN teachers, except for the length: a run has 60 epochs of 100
student steps at batch 64, and not 250 of 400 at 1,024. Schedules are compressed with the run and reach the same
values: λ(t) and α_adv(t) get steeper slopes, which scale with `distill.epochs`, like the cosines and the ramp's
ends. Steps run in bfloat16: 2 cores with AMX take 15 to 18 minutes for most methods; without AMX,
`--config.compute_dtype=float32` is faster. Images are read from folders (train/<class>/*, test/<class>/*).

The teacher trains for 65 to 80 minutes: 30 epochs at batch 64, Nesterov SGD, one warm-up epoch to 0.05 and a
cosine to 0, crops and flips.

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
noisy     trains the teacher for at most 15 epochs and stops at the first one with 88 % on the test images
runlocal  one epoch for the teacher, three for the distillation
"""

from cudfkd_jax import defaults

_EPOCHS, _STUDENT_STEPS, _BATCH = 60, 100, 64
_NOISY_ACCURACY, _NOISY_EPOCHS = 88.0, 15
# The rise of λ over the release's 100,000 student steps, and of α_adv if its ramp spanned all 250 epochs.
_LAMBDA_RISE, _ALPHA_RISE = 10.0, 12.5
# ADI and CMI synthesise one batch per epoch; these steps keep a run below two hours.
_SYNTHESIS_STEPS, _SYNTHESIS_BATCH = {"adi": 400, "cmi": 160}, 128
# Adam's learning rate, scaled with the square root of the batch size from 1,024 in the releases.
_GENERATOR_RATES = {"mb_dfkd": 0.005, "pre_dfkd": 0.005}


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    config = defaults.with_arguments("wrn16_2", "wrn16_1", chosen, noisy_accuracy=_NOISY_ACCURACY)
    config.compute_dtype = "bfloat16"
    config.data.source = "folder"
    defaults.train_for(config, epochs=30, batch_size=_BATCH, learning_rate=0.05, warmup_epochs=1.0)
    if "noisy" in chosen:
        config.teacher.epochs = _NOISY_EPOCHS
    synthesis_steps = _SYNTHESIS_STEPS.get(config.method, 0)
    defaults.scale_steps(config, student_steps=_STUDENT_STEPS, synthesis_steps=synthesis_steps, batch_size=_BATCH)
    d = config.distill
    d.epochs = _EPOCHS
    if config.method in ("cudfkd", "adadfkd"):
        d.update(loss="kl", temperature=20.0)
        # References, so that the slopes follow changes of the length.
        steps = d.get_ref("epochs") * d.get_ref("rounds_per_epoch") * d.get_ref("student_steps")
        config.curriculum.update(lambda_0=2.0, lambda_slope=_LAMBDA_RISE / steps.to_float())
    if config.method == "cudfkd":
        config.curriculum.update(adv=0.5, alpha=_ALPHA_RISE / d.get_ref("epochs").to_float())
    if synthesis_steps:
        config.synthesis.batch_size = _SYNTHESIS_BATCH
    config.generator.learning_rate = _GENERATOR_RATES.get(config.method, config.generator.learning_rate)
    # The same share of the pool as in the release: of 7,680 images here, of 51,200 there.
    config.cmi.update(bank_rows=6144, bank_draws=614)
    config.memory.every_epochs = 1
    config.evaluation.update(every_epochs=2, stability_from=(d.get_ref("epochs") * 0.32).to_int() + 1)
    if "runlocal" in chosen:
        defaults.train_for(config, epochs=1)
        d.epochs = 3
    return config
