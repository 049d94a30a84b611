"""CIFAR-100, the paper's Table III.

    python -m cudfkd_jax.main --config=configs/cifar100.py --workdir=runs/c100
    python -m cudfkd_jax.main --config=configs/cifar100.py:teacher=wrn40_2,student=wrn40_1

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
runlocal  minutes on a CPU, by default wrn16_2 → wrn16_1, as a functional test; accuracies are not representative

Pair                     settings of          paper's acc@1 / agree@1
resnet34 → resnet18      its own script       75.71 / 86.52   (the default)
wrn40_2  → wrn40_1       its own script       66.43 / 71.85
wrn40_2  → wrn16_2       wrn40_2 → wrn40_1    65.66 / 70.41
vgg11    → resnet18      resnet34 → resnet18  71.22 / 85.85

The paper's run of the default took 7.50 h on one RTX 3090 at batch 256.
"""

from cudfkd_jax import defaults

# The settings of the released scripts for ResNet and WRN teachers; VGG teachers have no script and use ResNet's.
_RESNET = {
    "distill": {"batch_size": 768, "epochs": 400, "temperature": 5.0, "loss": "l1"},
    "curriculum": {"alpha": 0.35, "adv": 0.0, "k_begin": 0.2, "k_end": 0.8},
}
_WRN = {
    "distill": {"batch_size": 1024, "epochs": 500, "temperature": 2.0, "loss": "kl"},
    "curriculum": {"alpha": 0.12, "adv": 0.0, "k_begin": 0.2, "k_end": 0.75},
}
# AdaDFKD's, of the authors' later code; ResNet teachers have no script and take that of VGG-11.
_ADADFKD_RESNET = {
    "distill": {"batch_size": 1024, "epochs": 400, "temperature": 5.0, "loss": "l1"},
    "curriculum": {"lambda_0": 1.0, "k_begin": 0.2, "k_end": 0.8},
    "adadfkd": {"negatives": 0.8, "queue": 12288},
}
_ADADFKD_WRN = {
    "distill": {"batch_size": 1024, "epochs": 500, "temperature": 2.0, "loss": "kl"},
    "curriculum": {"lambda_0": 1.2, "k_begin": 0.2, "k_end": 0.79},
    "adadfkd": {"student_weight": 0.15, "negatives": 0.8, "queue": 16384},
}


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    pair = ("wrn16_2", "wrn16_1") if "runlocal" in chosen else ("resnet34", "resnet18")
    config = defaults.with_arguments(*pair, chosen)
    config.data.update(
        name="cifar100", num_classes=100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
    )
    if config.method == "cudfkd":
        config.update(_WRN if config.teacher.arch.startswith("wrn") else _RESNET)
    if config.method == "dfq" and (config.teacher.arch, config.student.arch) == ("resnet34", "resnet18"):
        config.distill.learning_rate = 0.05  # as in its script in the release and in the benchmark
    config.curriculum.update(lambda_0=1.0, lambda_slope=2e-5)
    if config.method == "adadfkd":
        config.update(_ADADFKD_WRN if config.teacher.arch.startswith("wrn") else _ADADFKD_RESNET)
    if "runlocal" in chosen:
        defaults.run_locally(config, student_steps=80, batch_size=64)
    return config
