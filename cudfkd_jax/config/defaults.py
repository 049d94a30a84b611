"""Every setting of a run with its default, which is the paper's CIFAR-10 ResNet-34 → ResNet-18.

Files under `configs/` change a few of them; `--config.section.key=value` changes one. `validate.py`
refuses values out of range.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The whole default configuration."""
    config = ConfigDict()
    config.seed = 0  # of everything random but the digits' split
    # "cudfkd", "dafl", "zskt", "dfad", "dfq", "adi", "cmi", "mb_dfkd", "pre_dfkd". To be chosen after the colon of
    # --config, for its other settings come with it (`recipes.py`).
    config.method = "cudfkd"
    config.devices = 0  # local devices to use, of each process; 0: all
    config.loop = "auto"  # "python", "scan" (one compiled call an epoch) or "auto": python on the CPU
    # A step whose numbers are not finite: "stop" ends the run, "rollback" goes back to its newest checkpoint with
    # another random key, up to three times.
    config.on_nan = "stop"
    config.released_js = False  # "js" is the exact divergence; True: the released code's, clamped to [0.01, 0.99]
    # Of convolutions and matrix products: "float32", "bfloat16", or "auto": bfloat16 where the devices compute it
    # fast (GPUs, TPUs, CPUs with AMX or AVX512-BF16). A run keeps what it was started with.
    config.compute_dtype = "float32"
    # Student steps of a round whose images and teacher outputs are computed in one large batch, where the loop is
    # compiled; 0: as many as device memory allows.
    config.batches_at_once = 0
    # The teacher's BatchNorm folded into its convolutions in student steps; the same up to rounding.
    config.fold_bn = False

    data = config.data = ConfigDict()
    data.name = "cifar10"
    # "digits", "tfds", "archive", "folder", "npz", or "none": no images at all, agreement with the teacher is
    # measured on synthetic images.
    data.source = "tfds"
    data.dir = ""  # where the source looks; "": its own default
    data.image_shape = (32, 32, 3)
    data.num_classes = 10
    data.mean = (0.4914, 0.4822, 0.4465)  # per channel, of images in [0, 1]
    data.std = (0.2023, 0.1994, 0.2010)
    data.padding = 4  # of random crops when training with data, or on pools of images (ADI, CMI); 0: none
    data.flip = True  # mirrored images there

    teacher = config.teacher = ConfigDict()
    teacher.arch = "resnet34"
    teacher.module = ""  # a linen module in the place of arch: "package.module:Name", called without arguments
    teacher.train_argument = ""  # of the module's call: "" finds train, training, deterministic,
    # use_running_average; else the name of one that is true in training, or "not NAME" of one that is false then
    teacher.checkpoint = ""  # a trained network or the workdir of another run; "": train one
    teacher.stop_accuracy = 0.0  # --stage=teacher ends at the first epoch with this test accuracy, in %; 0: never
    teacher.update(_supervised(epochs=200))

    student = config.student = ConfigDict()
    student.arch = "resnet18"
    student.module = ""  # as the teacher's
    student.train_argument = ""

    scratch = config.scratch = ConfigDict()  # the student trained on the data (--stage=scratch)
    scratch.update(_supervised(epochs=200))

    kd = config.kd = ConfigDict()  # ordinary distillation with data (--stage=kd)
    kd.update(_supervised(epochs=200))
    kd.temperature = 4.0
    kd.weight = 0.9  # of the distillation term; the rest is cross entropy

    generator = config.generator = ConfigDict()
    generator.latent_dim = 512  # nz
    generator.width = 64  # ngf
    generator.stages = 2  # up-samplings by 2
    generator.size = "large"  # or "small": half the channels at the start (CMI)
    generator.initialisation = "normal"  # N(0, 0.02), CuDFKD's; or "torch", PyTorch's default
    generator.ema_decay = 0.0  # of the average of its weights that student images come from; 0: the weights
    generator.learning_rate = 1e-3  # Adam
    generator.schedule = "constant"  # or "cosine": to 0 over the epochs, as the student's
    generator.beta1 = 0.9
    generator.beta2 = 0.99

    distill = config.distill = ConfigDict()
    distill.epochs = 250
    distill.rounds_per_epoch = 40
    distill.synthesis_steps = 1  # a round
    distill.student_steps = 10  # a round
    distill.batch_size = 512  # of student steps, over all devices; replayed images come on top
    distill.loss = "l1"  # D of Eq. 6: "kl", "l1" or "js"
    distill.temperature = 20.0  # T
    distill.optimiser = "sgd"  # of the student; or "adam"
    distill.learning_rate = 0.1  # cosine to 0, constant within an epoch
    distill.momentum = 0.9  # of SGD
    distill.weight_decay = 1e-4  # in the gradient, before momentum or moments
    distill.clip_norm = 0.0  # largest norm of the student's gradient; 0: not clipped

    curriculum = config.curriculum = ConfigDict()
    curriculum.strategy = "log"  # v*: "log", "soft", "hard", "none"
    curriculum.granularity = "sample"  # one v* an image, or one a "batch"
    curriculum.lambda_0 = 2.0
    curriculum.lambda_slope = 1e-4  # a student step
    # Far above every loss, v* is near 1 for easy and hard alike and the curriculum is gone ("overreweighting",
    # §V-E). The paper gives no limit; 5 is this project's choice. 0: no limit.
    curriculum.lambda_max = 5.0
    curriculum.ramp = "linear"  # α_adv(t): "linear", "released", "eq17" (the printed Eq. 17) or "constant"
    curriculum.alpha = 0.5  # slope of α_adv, an epoch
    curriculum.adv = 0.0  # α_adv at the start
    curriculum.k_begin = 0.25  # the ramp's begin and end, as parts of all epochs
    curriculum.k_end = 0.75
    curriculum.none_keeps_ramp = True  # False: strategy "none" also holds α_adv at its start

    synthesis = config.synthesis = ConfigDict()
    synthesis.batch_size = 0  # of synthesis steps, over all devices; 0: distill.batch_size
    synthesis.adversarial_loss = "kl"  # D of CuDFKD's Eq. 4: "kl" or "js"
    # Over which images CuDFKD takes it: those on which teacher and student name the same class ("agreement", as
    # the authors' first release), or all ("none", as Eq. 4 and their later code).
    synthesis.adversarial_mask = "agreement"
    synthesis.adversarial_temperature = 3.0  # CuDFKD, ADI, CMI
    synthesis.adversarial_weight = 1.0  # of the other methods; CuDFKD's is α_adv(t)
    synthesis.bn_weight = 1.0  # α_bn of Eq. 5
    synthesis.class_weight = 1.0  # α_oh of Eq. 5
    synthesis.balance_weight = 20.0
    synthesis.activation_weight = 0.0  # of the teacher's mean |feature| (DAFL, MB-DFKD, PRE-DFKD)

    memory = config.memory = ConfigDict()  # of past synthetic images, replayed beside each student batch
    memory.capacity = 0  # images (CuDFKD, MB-DFKD), batch_size // 8 of them a slot; 0: no memory
    memory.every_epochs = 5  # a slot is stored after the first epoch and so many epochs later each

    zskt = config.zskt = ConfigDict()
    zskt.attention_weight = 250.0  # beside a KL divergence that is averaged over the classes; 0: no attention

    adi = config.adi = ConfigDict()
    adi.learning_rate = 0.1  # Adam, of the pixels
    adi.beta1 = 0.5
    adi.beta2 = 0.99
    adi.tv_weight = 1e-3  # total variation

    cmi = config.cmi = ConfigDict()
    cmi.contrastive_weight = 0.8
    cmi.contrastive_temperature = 0.1
    cmi.features = "bn"  # channel means at every BatchNorm input, or at the inputs of the "stages" (ResNets)
    cmi.head_width = 256  # of the projection head
    cmi.head_learning_rate = 1e-3
    cmi.bank_rows = 40960  # features of kept images, to draw negatives from
    cmi.bank_draws = 4096  # a step

    pre_dfkd = config.pre_dfkd = ConfigDict()
    pre_dfkd.memory_steps = 4  # of the VAE, a round
    pre_dfkd.memory_learning_rate = 5e-4  # Adam
    pre_dfkd.kl_weight = 1e-5  # of the VAE's KL divergence
    pre_dfkd.latent_learning_rate = 0.02  # of the Adam step on latents that are to be replayed

    evaluation = config.evaluation = ConfigDict()
    evaluation.every_epochs = 1
    evaluation.batch_size = 512
    evaluation.synthetic_images = 1000  # held-out images to measure agreement on where data.source is "none"
    evaluation.stability_from = 80  # first epoch, counted from 1, of the mean and variance of Acc@1 (Table V)

    checkpoint = config.checkpoint = ConfigDict()
    checkpoint.every_seconds = 60.0  # 0: at the end of every epoch
    checkpoint.keep = 2

    # Several processes, each with devices of its own, on one machine or many; all are started with these settings.
    distributed = config.distributed = ConfigDict()
    distributed.detect = False  # True: JAX finds the others in the environment, of SLURM, Open MPI, Kubernetes
    distributed.coordinator = ""  # else host:port of the first process, which the others can reach
    distributed.processes = 0  # and how many there are
    distributed.process = -1  # and which one this is, from 0

    log = config.log = ConfigDict()
    log.tensorboard = True
    log.samples_every_epochs = 10  # pictures and difficulty of synthetic images, for the report; 0: none
    log.report = True  # report.html at the end of a data-free run
    log.majorise_minimise_updates = 0  # after each evaluation, to count how often Eq. 8 holds (CuDFKD); 0: none
    return config


def _supervised(epochs: int) -> dict[str, Any]:
    # Not the release's, which trains with plain SGD, weight decay 1e-4, steps and batch 256.
    return {
        "epochs": epochs,
        "batch_size": 128,
        "learning_rate": 0.1,  # SGD with Nesterov momentum 0.9, cosine to 0 after the warm-up
        "warmup_epochs": 0.0,
        "weight_decay": 5e-4,
    }
