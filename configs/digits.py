"""Handwritten digits of scikit-learn at 16×16: the demo, and the smallest real run.

    python -m cudfkd_jax.main --config=configs/digits.py --workdir=runs/digits

EXPECTED

After the colon, separated by commas: `teacher=ARCH`, `student=ARCH`, `method=NAME`, `released`, `runlocal`
(a quarter of the epochs).
"""

from cudfkd_jax import defaults

ARGUMENTS = ("teacher", "student", "method", "released", "runlocal")


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments, ARGUMENTS)
    config = defaults.get_config()
    config.data.update(
        name="digits",
        source="digits",
        image_shape=(16, 16, 1),
        mean=(0.3058,),
        std=(0.3191,),
        padding=2,
        flip=False,
    )
    config.teacher.arch = chosen.get("teacher", "wrn16_2")
    config.student.arch = chosen.get("student", "wrn16_1")
    for section in (config.teacher, config.scratch, config.kd):
        section.update(epochs=12, batch_size=64, warmup_epochs=1.0)
    config.method = chosen.get("method", config.method)
    config.generator.update(latent_dim=128, width=32)
    config.distill.update(epochs=10, rounds_per_epoch=10, batch_size=64, loss="kl", temperature=20.0)
    config.curriculum.update(alpha=0.05, adv=0.5)
    config.evaluation.stability_from = 5
    config.log.samples_every_epochs = 2
    if "runlocal" in chosen:
        for section in (config.teacher, config.scratch, config.kd, config.distill):
            section.epochs = max(section.epochs // 4, 2)
    if "released" in chosen:
        defaults.released(config)
    return config
