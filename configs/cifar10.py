"""CIFAR-10, the paper's Table II.

    python -m cudfkd_jax.main --config=configs/cifar10.py --workdir=runs/c10
    python -m cudfkd_jax.main --config=configs/cifar10.py:teacher=wrn40_2,student=wrn16_2

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
noisy     stops the teacher's training at the first epoch with 94.07 % on the test images, the accuracy of the
          paper's noisy teacher (Figure 4)
runlocal  minutes on a CPU, by default wrn16_2 → wrn16_1: short training and small batches, as a functional test;
          accuracies are not representative

Pair                     settings of         paper's acc@1 / agree@1
resnet34 → resnet18      its own script      95.28 / 98.20   (the default)
wrn40_2  → wrn16_1       its own script      not in the paper (88.77 in the release)
wrn40_2  → wrn40_1       wrn40_2 → wrn16_1   93.18 / 95.27
wrn40_2  → wrn16_2       wrn40_2 → wrn16_1   92.94 / 95.15
vgg11    → resnet18      resnet34 → resnet18 91.61 / 96.00

The paper's run of the default took 5.48 h on one RTX 3090 at batch 256. `runlocal` takes 6 to 10 minutes on 2 CPU
cores: the WRN-16-2 reaches about 62 % after its one epoch, and the WRN-16-1 about 20 % after 240 steps.
"""

from cudfkd_jax import defaults

# The settings of the released scripts for ResNet and WRN teachers; VGG teachers have no script and use ResNet's.
_RESNET = {
    "distill": {"batch_size": 512, "epochs": 250, "temperature": 20.0, "loss": "l1"},
    "curriculum": {"alpha": 0.5, "adv": 0.0, "k_begin": 0.25, "k_end": 0.75},
}
_WRN = {
    "distill": {"batch_size": 1024, "epochs": 250, "temperature": 20.0, "loss": "kl"},
    "curriculum": {"alpha": 0.05, "adv": 0.5, "k_begin": 0.25, "k_end": 0.75},
}
# AdaDFKD's, of the authors' later code; their WRN-16-1 has no script and takes WRN-16-2's.
_ADADFKD_RESNET = {
    "distill": {"batch_size": 768, "epochs": 300, "temperature": 20.0, "loss": "kl"},
    "curriculum": {"lambda_0": 2.2, "k_begin": 0.25, "k_end": 0.75},
    "adadfkd": {"negatives": 0.9, "queue": 4096},
}
_ADADFKD_WRN = {
    "distill": {"batch_size": 1024, "epochs": 500, "temperature": 20.0, "loss": "kl"},
    "curriculum": {"lambda_0": 1.5, "k_begin": 0.0, "k_end": 0.75},
    "adadfkd": {"negatives": 0.8, "queue": 8192},
}


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    pair = ("wrn16_2", "wrn16_1") if "runlocal" in chosen else ("resnet34", "resnet18")
    config = defaults.with_arguments(*pair, chosen, noisy_accuracy=94.07)
    if config.method == "cudfkd":
        config.update(_WRN if config.teacher.arch.startswith("wrn") else _RESNET)
    config.curriculum.update(lambda_0=2.0, lambda_slope=1e-4)
    if config.method == "adadfkd":
        config.update(_ADADFKD_WRN if config.teacher.arch.startswith("wrn") else _ADADFKD_RESNET)
    if "runlocal" in chosen:
        defaults.run_locally(config, student_steps=80, batch_size=64)
    return config
