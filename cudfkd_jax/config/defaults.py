"""Every setting of a run with its default: the paper's CIFAR-10 experiment, ResNet-34 → ResNet-18.

Files under `configs/` change a few of them; `--config.section.key=value` changes one. `validate.py`
rejects values out of range.
"""

from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax.methods import METHODS, setting


def get_config() -> ConfigDict:
    """Returns the complete default configuration."""
    config = ConfigDict()
    config.seed = 0  # of all randomness except the split of the digits
    # "cudfkd", "dafl", "zskt", "dfad", "dfq", "adi", "cmi", "mb_dfkd", "pre_dfkd", "adadfkd", "fastdfkd", or
    # the import path of a `MethodSpec`. Choose it after the colon of --config, which also applies its recipe.
    config.method = "cudfkd"
    config.devices = 0  # local devices per process; 0: all
    config.loop = "auto"  # "python", "scan" (one compiled call per epoch) or "auto": python on the CPU
    # On a non-finite step, "stop" ends the run and "rollback" returns to its newest checkpoint with another random
    # key, at most three times.
    config.on_nan = "stop"
    config.released_js = False  # "js" is the exact divergence; True: the released code's, clamped to [0.01, 0.99]
    # Dtype of convolutions and matrix products: "float32", "bfloat16", or "auto": bfloat16 where the devices
    # compute it fast (GPUs, TPUs, CPUs with AMX or AVX512-BF16). A run keeps the dtype that it was started with.
    config.compute_dtype = "float32"
    # The number of student steps per round whose images and teacher outputs a compiled loop computes in one large
    # batch; 0: as many as device memory allows.
    config.batches_at_once = 0
    # Fold the teacher's BatchNorm into its convolutions in student steps; equal up to rounding.
    config.fold_bn = False

    data = config.data = ConfigDict()  # images to train teachers on and to measure
    data.name = "cifar10"  # of TensorFlow Datasets or of the archive; else a name for tables
    # "digits", "tfds", "archive", "folder", "npz", or "none": no images; agreement with the teacher is measured on
    # synthetic images.
    data.source = "tfds"
    data.dir = ""  # directory of the data; "": the source's default
    # The order of class folders, which numbers the labels: "text" (1, 10, 2), "natural" (1, 2, 10), "wnids" (as
    # Tiny ImageNet's wnids.txt lists them), or "auto": as text, which is refused where "natural" differs.
    data.class_order = "auto"
    data.image_shape = (32, 32, 3)  # height, width, channels; (): those of the images of a folder
    # Bring images of other sizes to image_shape: scaled (bilinear, antialiased) until the shorter side fits, then
    # cropped to the centre. False: such images are refused.
    data.resize = False
    data.num_classes = 10  # length of the logits; 0: the class folders of a folder
    # Per channel, of images in [0, 1]; (): those of a folder's training images, if networks are trained on them.
    data.mean = (0.4914, 0.4822, 0.4465)
    data.std = (0.2023, 0.1994, 0.2010)  # per channel, of the same images
    data.padding = 4  # for random crops in training with data, and of methods with a pool of images; 0: none
    data.flip = True  # random mirroring, in the same cases

    teacher = config.teacher = ConfigDict()  # the network that is distilled, and its training on the data
    # resnet18/34/50, vgg8/11/13 or wrnD_W with depth D = 6n + 4 and width W, for small images;
    # resnet10/18/34/50_imagenet, torchvision's, for large ones.
    teacher.arch = "resnet34"
    # A module instead of arch: "package.module:Name" of linen, instantiated without arguments;
    # "nnx:package.module:Name" of Flax NNX, called with rngs if it takes them; or "torch:package.module:name" of
    # PyTorch, used with its weights or those of teacher.checkpoint.
    teacher.module = ""
    # The argument of the module's call that sets its mode: "" detects train, training, deterministic or
    # use_running_average; else NAME if the argument is true in training, "not NAME" if it is false then.
    teacher.train_argument = ""
    teacher.checkpoint = ""  # a trained network or the workdir of another run; "": train one
    teacher.checkpoint_key = ""  # the entry or item of the checkpoint with the weights, e.g. "ema"; "": the usual
    teacher.verify = True  # whether a teacher from PyTorch that does not recognise the test images stops the run
    teacher.stop_accuracy = 0.0  # --stage=teacher stops at the first epoch with this test accuracy, in %; 0: never
    teacher.update(_supervised(epochs=200))

    student = config.student = ConfigDict()  # the network that learns
    student.arch = "resnet18"  # as for the teacher
    student.module = ""  # a linen module, as for the teacher
    student.train_argument = ""  # as for the teacher

    scratch = config.scratch = ConfigDict()  # training the student on the data (--stage=scratch)
    scratch.update(_supervised(epochs=200))

    kd = config.kd = ConfigDict()  # ordinary distillation with data (--stage=kd)
    kd.update(_supervised(epochs=200))
    kd.temperature = 4.0  # T
    kd.weight = 0.9  # of the distillation term; cross entropy gets the rest

    generator = config.generator = ConfigDict()  # makes images from latents
    generator.latent_dim = 512  # length of z (nz)
    generator.width = 64  # base number of channels (ngf)
    generator.stages = 2  # number of 2× up-samplings; 0: as many as bring images of at most 8×8 to image_shape
    generator.size = "large"  # or "small": half the initial channels (CMI)
    generator.initialisation = "normal"  # N(0, 0.02), CuDFKD's; or "torch", PyTorch's default
    generator.ema_decay = 0.0  # of the weight average that makes the student's images; 0: no averaging
    generator.learning_rate = 1e-3  # Adam
    generator.schedule = "constant"  # or "cosine": to 0 over the epochs, for generators that last a run
    generator.beta1 = 0.9  # of Adam
    generator.beta2 = 0.99  # of Adam

    distill = config.distill = ConfigDict()  # the data-free run
    distill.epochs = 250  # one evaluation, record and step of α_adv(t) each
    # A duration, such as "2h" or "90min": a round is measured at the start, and epochs and schedules are shortened
    # to what fits. "": the whole length.
    distill.budget = ""
    distill.warmup_rounds = 0  # before the first epoch, without student steps
    distill.rounds_per_epoch = 40  # a round is synthesis steps, then student steps
    distill.synthesis_steps = 1  # per round
    distill.student_steps = 10  # per round
    distill.batch_size = 512  # of student steps, over all devices, not counting replayed images
    distill.loss = "l1"  # D of Eq. 6: "kl", "l1" or "js"
    distill.temperature = 20.0  # T
    distill.optimiser = "sgd"  # of the student; or "adam"
    distill.learning_rate = 0.1  # cosine to learning_rate_end, constant within an epoch
    distill.learning_rate_end = 0.0  # after the last epoch
    distill.momentum = 0.9  # of SGD
    distill.weight_decay = 1e-4  # added to the gradient before momentum or moments
    distill.clip_norm = 0.0  # maximum norm of the student's gradient; 0: no clipping

    curriculum = config.curriculum = ConfigDict()  # of CuDFKD: v*, λ(t) and α_adv(t)
    curriculum.strategy = "log"  # v*: "log", "soft", "hard", "none"
    curriculum.granularity = "sample"  # one v* per image, or per "batch"
    curriculum.lambda_0 = 2.0  # λ(0)
    curriculum.lambda_slope = 1e-4  # of λ(t), per student step
    # If λ is far above every loss, v* is near 1 for easy and hard images alike and the curriculum vanishes
    # ("overreweighting", §V-E). The paper gives no limit; 5 is this project's choice. 0: no limit.
    curriculum.lambda_max = 5.0
    curriculum.ramp = "linear"  # α_adv(t): "linear", "released", "eq17" (the printed Eq. 17) or "constant"
    curriculum.alpha = 0.5  # slope of α_adv per epoch
    curriculum.adv = 0.0  # initial α_adv
    curriculum.k_begin = 0.25  # start of the ramp, as a fraction of all epochs
    curriculum.k_end = 0.75  # end of the ramp
    curriculum.none_keeps_ramp = True  # False: strategy "none" also holds α_adv at its initial value

    synthesis = config.synthesis = ConfigDict()  # the objective of the images
    synthesis.batch_size = 0  # of synthesis steps of methods with a pool, over all devices; 0: distill.batch_size
    synthesis.adversarial_loss = "kl"  # D of CuDFKD's Eq. 4: "kl" or "js"
    # The images that enter CuDFKD's Eq. 4: those on which teacher and student predict the same class ("agreement",
    # as in the authors' first release), or all ("none", as in Eq. 4 and their later code).
    synthesis.adversarial_mask = "agreement"
    synthesis.adversarial_temperature = 3.0  # T of the adversarial terms that have one
    synthesis.adversarial_weight = 1.0  # for the other methods; CuDFKD uses α_adv(t)
    synthesis.bn_weight = 1.0  # α_bn of Eq. 5
    synthesis.class_weight = 1.0  # α_oh of Eq. 5
    synthesis.balance_weight = 20.0  # of the class balance
    synthesis.activation_weight = 0.0  # of the teacher's mean |feature| (DAFL, MB-DFKD, PRE-DFKD)

    memory = config.memory = ConfigDict()  # past synthetic images, replayed with each student batch
    memory.capacity = 0  # in images, batch_size // 8 per slot, for methods that train one generator; 0: no memory
    memory.every_epochs = 5  # a slot is stored after the first epoch, then at this interval

    for method in METHODS.values():  # a method's own settings, described in its module
        if method.settings:
            config[method.name] = ConfigDict(setting.defaults(method.settings))

    evaluation = config.evaluation = ConfigDict()  # on the test images
    evaluation.every_epochs = 1  # and after the last epoch
    evaluation.batch_size = 512  # affects memory and speed only
    evaluation.synthetic_images = 1000  # held-out images for agreement if data.source is "none"
    evaluation.stability_from = 80  # first epoch, counted from 1, of the mean and variance of Acc@1 (Table V)

    checkpoint = config.checkpoint = ConfigDict()  # states of the run to resume from
    checkpoint.every_seconds = 60.0  # between checkpoints; 0: at the end of every epoch
    checkpoint.keep = 2  # number of checkpoints

    # Several processes, each with separate devices, on one or more machines; start all with the same settings.
    distributed = config.distributed = ConfigDict()
    distributed.detect = False  # True: JAX finds the processes through SLURM, Open MPI or Kubernetes
    distributed.coordinator = ""  # else host:port of the first process, reachable from the others
    distributed.processes = 0  # total number of processes
    distributed.process = -1  # index of this process, from 0

    log = config.log = ConfigDict()  # what a run writes besides
    log.tensorboard = True  # write events
    log.samples_every_epochs = 10  # pictures and difficulty of synthetic images, for the report; 0: none
    log.report = True  # write report.html at the end of a data-free run
    log.majorise_minimise_updates = 0  # updates per evaluation on which to test Eq. 8 (CuDFKD); 0: none
    return config


def _supervised(epochs: int) -> dict[str, Any]:
    # Differs from the release, which uses plain SGD, weight decay 1e-4, a step schedule and batches of 256.
    return {
        "epochs": epochs,  # through the training images
        "batch_size": 128,  # over all devices
        "learning_rate": 0.1,  # SGD with Nesterov momentum 0.9, cosine to 0 after the warm-up
        "warmup_epochs": 0.0,  # of a linear warm-up of the learning rate
        "weight_decay": 5e-4,  # added to the gradient
    }
