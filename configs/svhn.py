"""SVHN, house numbers of 32×32 pixels; not in the paper.

    python -m cudfkd_jax.main --config=configs/svhn.py --workdir=runs/svhn
    python -m cudfkd_jax.main --config=configs/svhn.py --config.data.source=folder --config.data.dir=svhn

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
runlocal  minutes on a CPU, by default wrn16_2 → wrn16_1, as a functional test; accuracies are not representative

The settings are those of CuDFKD's authors' later code for wrn40_2 → wrn40_1: mean and std of 0.5, neither crops
nor flips. AdaDFKD has no script for SVHN and takes CuDFKD's batch, length, loss, generator and λ(t). Images are
TFDS's `svhn_cropped`, without the extra ones; `data.source` may also be folder or npz.
"""

from cudfkd_jax import defaults


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    pair = ("wrn16_2", "wrn16_1") if "runlocal" in chosen else ("wrn40_2", "wrn40_1")
    config = defaults.with_arguments(*pair, chosen)
    config.data.update(name="svhn_cropped", mean=(0.5,) * 3, std=(0.5,) * 3, padding=0, flip=False)
    config.curriculum.update(k_begin=0.25, k_end=0.75, lambda_0=0.8, lambda_slope=2e-5)
    if config.method in ("cudfkd", "adadfkd"):
        config.distill.update(batch_size=1024, epochs=250, temperature=20.0, loss="kl")
        config.generator.latent_dim = 1024
    if config.method == "cudfkd":
        config.curriculum.update(alpha=0.03, adv=0.0)
    if "runlocal" in chosen:
        defaults.run_locally(config, student_steps=80, batch_size=64)
    return config
