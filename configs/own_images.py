"""Your own images, train/<class>/* and test/<class>/*: shape and classes are those of the folder.

    python -m cudfkd_jax.main --config=configs/own_images.py --config.data.dir=flowers --workdir=runs/flowers

trains a teacher, with mean and std of the images in train/. With one from a file (`teacher.checkpoint`) test/ is
enough, and `data.mean` and `data.std` must be given: those of its training. Images of several sizes need
`data.image_shape` and `data.resize`.

Arguments after the colon, separated by commas:

teacher=ARCH, student=ARCH, method=NAME
released  behaves like the authors' released code
runlocal  minutes on a CPU, as a functional test; accuracies are not representative

The default is resnet18_imagenet → resnet10_imagenet. Networks for small images, such as resnet18, keep the full
resolution in their first stage and suit images of up to about 64 pixels; there the generator is the paper's.

The settings are those of Tiny ImageNet, the paper's largest images, with 512 latent dimensions in place of 1,024;
beyond its 64 pixels they are not tuned. For `*_imagenet` teachers the batch is 64, and the generator has 16
channels at full resolution in place of 64: at 224 pixels 1.2 billion multiplications per image, where a ResNet-18
has 1.8, and not 19.
"""

from cudfkd_jax import defaults

_BATCH, _WIDTH, _PADDING = 64, 16, 28


def get_config(arguments: str = ""):
    chosen = defaults.parse_arguments(arguments)
    config = defaults.with_arguments("resnet18_imagenet", "resnet10_imagenet", chosen)
    config.data.update(name="own_images", source="folder", image_shape=(), num_classes=0, mean=(), std=())
    config.generator.stages = 0
    d = config.distill
    if config.method == "cudfkd":
        d.update(batch_size=512, epochs=400, temperature=5.0, loss="l1")
    config.curriculum.update(alpha=0.15, adv=1.0, k_begin=0.2, k_end=0.75, lambda_0=1.0, lambda_slope=2e-5)
    if config.method == "adadfkd":
        d.update(batch_size=256, epochs=500, temperature=5.0, loss="l1")
        config.curriculum.update(alpha=0.0, lambda_0=1.3)
        config.adadfkd.update(generator_weight=0.05, student_weight=0.02, negatives=0.81, queue=16384)
    if config.teacher.arch.endswith("_imagenet"):
        steps = d.rounds_per_epoch * d.student_steps
        defaults.scale_steps(config, student_steps=steps, synthesis_steps=d.synthesis_steps, batch_size=_BATCH)
        defaults.train_for(config, batch_size=_BATCH)
        config.generator.width = _WIDTH
        config.data.padding = _PADDING  # of 224 pixels, as 4 of 32
    if "runlocal" in chosen:
        defaults.run_locally(config, student_steps=20, batch_size=16)
    return config
