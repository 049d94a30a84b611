"""Tiny ImageNet at 64×64, the paper's Table IV.

    python -m cudfkd_jax.main --config=configs/tiny_imagenet.py --config.data.dir=tiny-imagenet-200

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
runlocal  by default wrn16_1 → wrn10_1, as a functional test; a CPU needs most of an hour for the teacher's one
          epoch, and accuracies are not representative

All pairs use the settings of the released script for resnet34 → resnet18. The paper reports acc@1 43.42 and
agree@1 50.07 with a teacher of 61.47. These are not comparable: the release's student has a 7×7 stride-2 stem with
max pooling; here both networks have the 3×3 stem.
"""

from cudfkd_jax import defaults


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    pair = ("wrn16_1", "wrn10_1") if "runlocal" in chosen else ("resnet34", "resnet18")
    config = defaults.with_arguments(*pair, chosen)
    config.data.update(name="tiny_imagenet", source="folder", image_shape=(64, 64, 3), num_classes=200)
    config.data.update(mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262))
    if config.method == "cudfkd":
        config.distill.update(batch_size=512, epochs=400, temperature=5.0, loss="l1")
    config.curriculum.update(alpha=0.15, adv=1.0, k_begin=0.2, k_end=0.75, lambda_0=1.0, lambda_slope=2e-5)
    if config.method == "adadfkd":
        config.distill.update(batch_size=256, epochs=500, temperature=5.0, loss="l1")
        config.curriculum.update(alpha=0.0, lambda_0=1.3)
        config.adadfkd.update(generator_weight=0.05, student_weight=0.02, negatives=0.81, queue=16384)
    if config.method in ("cudfkd", "adadfkd"):
        config.generator.latent_dim = 1024
    config.generator.stages = 3
    if "runlocal" in chosen:
        defaults.run_locally(config, student_steps=40, batch_size=32)
    return config
