"""A configuration whose whole run takes seconds: every stage on real digits, too short to learn much.

PYTHONPATH=tests/support python -m cudfkd_jax.main --config=tests/support/tiny.py
"""

from cudfkd_jax import defaults

NET = "nets:TinyNet"  # compiles in half the time of the smallest WRN


def get_config(arguments: str = ""):
    config = defaults.with_arguments(NET, NET, defaults.parse_arguments(arguments))
    config.data.update(name="digits", source="digits", image_shape=(8, 8, 1), padding=1, flip=False)
    config.data.update(mean=(0.3,), std=(0.3,))
    defaults.train_for(config, epochs=1, batch_size=256)
    config.teacher.verify = False  # after one epoch it guesses
    config.generator.update(latent_dim=8, width=4)
    config.distill.student_steps = 2
    defaults.scale_steps(config, student_steps=4, synthesis_steps=3, batch_size=32)
    config.distill.update(epochs=4, loss="kl" if config.method == "cudfkd" else config.distill.loss)
    config.cmi.update(bank_rows=64, bank_draws=48, head_width=8)
    config.evaluation.stability_from = 0
    config.log.update(tensorboard=False, samples_every_epochs=2, report=False)
    return config
