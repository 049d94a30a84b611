"""The configurations: the settings of the released scripts, and what the arguments after the colon change."""

import runpy
from pathlib import Path

import pytest

from cudfkd_jax.config import access, defaults, loading, presets, validate
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.methods import METHODS
from cudfkd_jax.objectives import curriculum
from cudfkd_jax.runtime.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def _load(name: str, arguments: str = ""):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arguments)


# batch, epochs, T, λ0, loss, α, k_begin, k_end, α_adv at the start and at the end, nz, d
RELEASED = {
    ("cifar10", "resnet34", "resnet18"): (512, 250, 20, 2, "l1", 0.5, 0.25, 0.75, 0, 62, 512, 2),
    ("cifar10", "wrn40_2", "wrn16_1"): (1024, 250, 20, 2, "kl", 0.05, 0.25, 0.75, 0.5, 6.7, 512, 2),
    ("cifar100", "resnet34", "resnet18"): (768, 400, 5, 1, "l1", 0.35, 0.2, 0.8, 0, 83.65, 512, 2),
    ("cifar100", "wrn40_2", "wrn40_1"): (1024, 500, 2, 1, "kl", 0.12, 0.2, 0.75, 0, 32.88, 512, 2),
    ("tiny_imagenet", "resnet34", "resnet18"): (512, 400, 5, 1, "l1", 0.15, 0.2, 0.75, 1, 33.85, 1024, 3),
}


@pytest.mark.parametrize(("data", "teacher", "student"), RELEASED)
def test_settings_of_the_released_scripts(data, teacher, student):
    c = _load(data, f"teacher={teacher},student={student},released")
    d, u, g = c.distill, c.curriculum, c.generator
    alpha = curriculum.adversarial_schedule(
        u.ramp,
        initial=u.adv,
        slope=u.alpha,
        k_begin=u.k_begin,
        k_end=u.k_end,
        epochs=d.epochs,
        steps_per_epoch=400,
    )
    ends = [float(alpha(step)) for step in (0, 400 * d.epochs - 1)]
    assert (d.batch_size, d.epochs, d.temperature, u.lambda_0, d.loss) == RELEASED[data, teacher, student][:5]
    assert (u.alpha, u.k_begin, u.k_end) == RELEASED[data, teacher, student][5:8]
    assert ends == pytest.approx(RELEASED[data, teacher, student][8:10], rel=1e-6)
    assert (g.latent_dim, g.stages) == RELEASED[data, teacher, student][10:]
    assert access.distill_epoch(c) == (40, 1, 10, 0) and access.distill_epoch(c).steps == 400
    assert (d.learning_rate, d.momentum, d.weight_decay) == (0.1, 0.9, 1e-4)
    assert (g.learning_rate, g.beta1, g.beta2, g.width) == (1e-3, 0.9, 0.99, 64)
    assert u.lambda_slope == (1e-4 if data == "cifar10" else 2e-5)
    assert (c.teacher.arch, c.student.arch) == (teacher, student)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("pair", "family"),
    [
        ("teacher=vgg11,student=resnet18", ""),
        ("teacher=wrn40_2,student=wrn40_1", "teacher=wrn40_2"),
        ("teacher=wrn40_2,student=wrn16_2", "teacher=wrn40_2"),
    ],
)
def test_other_pairs_of_the_tables_have_the_settings_of_their_family(data, pair, family):
    a, b = (access.flatten(_load(data, arguments)) for arguments in (pair, family))
    assert {key for key in a if a[key] != b[key]} <= {"teacher.arch", "student.arch"}


# Of the scripts of AdaDFKD: batch, epochs, T, loss, λ₀, begin, end, nz; w_h, w_s, negatives, queue.
ADADFKD = {
    ("cifar10", "resnet34", "resnet18"): (768, 300, 20, "kl", 2.2, 0.25, 0.75, 512, 0.1, 0.1, 0.9, 4096),
    ("cifar10", "wrn40_2", "wrn16_2"): (1024, 500, 20, "kl", 1.5, 0.0, 0.75, 512, 0.1, 0.1, 0.8, 8192),
    ("cifar100", "vgg11", "resnet18"): (1024, 400, 5, "l1", 1.0, 0.2, 0.8, 512, 0.1, 0.1, 0.8, 12288),
    ("cifar100", "wrn40_2", "wrn16_2"): (1024, 500, 2, "kl", 1.2, 0.2, 0.79, 512, 0.1, 0.15, 0.8, 16384),
    ("tiny_imagenet", "resnet50", "resnet18"): (256, 500, 5, "l1", 1.3, 0.2, 0.75, 1024, 0.05, 0.02, 0.81, 16384),
}


@pytest.mark.parametrize(("data", "teacher", "student"), ADADFKD)
def test_settings_of_the_scripts_of_adadfkd(data, teacher, student):
    c = _load(data, f"teacher={teacher},student={student},method=adadfkd")
    d, u, own = c.distill, c.curriculum, c.adadfkd
    found = (d.batch_size, d.epochs, d.temperature, d.loss, u.lambda_0, u.k_begin, u.k_end, c.generator.latent_dim)
    found += (own.generator_weight, own.student_weight, own.negatives, own.queue)
    assert found == ADADFKD[data, teacher, student]
    assert (u.alpha, u.adv) == (0, 1)


@pytest.mark.parametrize(
    "data", ["digits", "cifar10", "cifar10_cpu", "cifar100", "tiny_imagenet", "svhn", "own_images"]
)
def test_adadfkds_adversarial_weight_is_constant_and_its_student_loss_suits_the_pair(data):
    c = _load(data, "method=adadfkd")
    assert (c.curriculum.alpha, c.curriculum.adv) == (0, 1)
    if c.teacher.arch.startswith("wrn"):
        assert c.distill.loss == "kl"


def test_adadfkd_on_own_images_has_the_settings_of_tiny_imagenet():
    own, tiny = (_load(data, "method=adadfkd,teacher=resnet34") for data in ("own_images", "tiny_imagenet"))
    for section in ("adadfkd", "curriculum", "distill"):
        assert own[section].to_dict() == tiny[section].to_dict()


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "tiny_imagenet", "svhn"])
def test_released_changes_what_the_release_does_otherwise_and_nothing_else(data):
    default, released = (access.flatten(_load(data, arguments)) for arguments in ("", "released"))
    changed = {key: released[key] for key in default if default[key] != released[key]}
    assert changed == {
        "curriculum.granularity": "batch",  # one v a batch
        "curriculum.lambda_max": 0.0,  # no limit on λ
        "curriculum.none_keeps_ramp": False,  # the ablation "none" also drops the ramp
        "curriculum.ramp": "released",  # the last step of the ramp is one epoch earlier
        "released_js": True,  # the clamped JS
    }


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "tiny_imagenet", "svhn", "own_images"])
@pytest.mark.parametrize("arguments", ["", "released", "runlocal", "teacher=wrn40_2,student=wrn16_1,released"])
def test_every_configuration_passes_the_checks(data, arguments):
    config = _load(data, arguments)
    validate.check(config)
    assert access.flatten(config).keys() == access.flatten(defaults.get_config()).keys()


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "tiny_imagenet", "svhn", "own_images"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_for_every_data_set(data, method):
    """400 student steps an epoch (360 of those with 36 rounds), and `runlocal` a small part of them."""
    config, local = _load(data, f"method={method}"), _load(data, f"method={method},runlocal")
    for c in (config, local):
        validate.check(c)
        assert c.method == method
    steps, few = (access.distill_epoch(c).steps for c in (config, local))
    assert few <= steps == (100 if data == "digits" else 360 if method in ("mb_dfkd", "pre_dfkd") else 400)


def test_settings_of_the_benchmark():
    """Those that the methods are published with, as far as they differ from each other."""
    found = {}
    for method in METHODS:
        c = _load("cifar10", f"method={method}")
        d, g = c.distill, c.generator
        found[method] = (
            d.batch_size,
            d.student_steps,
            d.loss,
            d.temperature,
            g.latent_dim,
            g.learning_rate,
            g.beta1,
        )
    assert found == {
        "cudfkd": (512, 10, "l1", 20.0, 512, 1e-3, 0.9),
        "dafl": (256, 5, "kl", 1.0, 512, 1e-3, 0.5),
        "zskt": (256, 5, "kl", 1.0, 256, 1e-3, 0.5),
        "dfad": (256, 5, "l1", 1.0, 256, 1e-3, 0.5),
        "dfq": (256, 10, "kl", 1.0, 256, 1e-3, 0.5),
        "adi": (256, 400, "kl", 20.0, 512, 1e-3, 0.9),  # it has no generator
        "cmi": (128, 400, "kl", 20.0, 256, 1e-3, 0.5),
        "mb_dfkd": (1024, 10, "l1", 20.0, 1000, 0.02, 0.9),
        "pre_dfkd": (1024, 10, "l1", 20.0, 1000, 0.02, 0.9),
        "adadfkd": (768, 10, "kl", 20.0, 512, 1e-3, 0.9),
        "fastdfkd": (256, 400, "kl", 20.0, 256, 1e-3, 0.5),
    }


@pytest.mark.parametrize(
    ("data", "norm"), [("digits", 50), ("cifar10", 50), ("cifar100", 500), ("tiny_imagenet", 1000)]
)
def test_zskt_clips_at_five_times_the_number_of_classes(data, norm):
    """The original clips the gradient of KL/K + 250 · attention at 5; ours is that of K times as much."""
    config = _load(data, "method=zskt")
    assert config.distill.clip_norm == norm == 5 * config.data.num_classes
    assert type(access.flatten(config)["distill.clip_norm"]) is float


def test_zskts_clip_follows_the_classes_of_other_data_unless_it_is_set():
    config = loading.load(f"{CONFIGS / 'digits.py'}:method=zskt")
    loading.override(config, ["--config.data.num_classes=7"])
    assert config.distill.clip_norm == 35
    loading.override(config, ["--config.distill.clip_norm=3", "--config.data.num_classes=9"])
    assert (config.distill.clip_norm, config.data.num_classes) == (3, 9)


def test_dfq_learns_at_the_rate_of_its_script_where_there_is_one():
    rates = {
        (data, pair): _load(data, f"method=dfq{pair}").distill.learning_rate
        for data in ("cifar10", "cifar100", "tiny_imagenet")
        for pair in ("", ",teacher=wrn40_2,student=wrn16_1")
    }
    assert {key for key, rate in rates.items() if rate == 0.05} == {("cifar100", "")}
    assert set(rates.values()) == {0.05, 0.1}
    assert _load("cifar100").distill.learning_rate == 0.1


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tiny_imagenet"])
def test_crops_are_padded_as_in_the_release(data):
    assert _load(data).data.padding == 4


def test_ablation_none_keeps_the_ramp_unless_released():
    config = _load("cifar10")
    config.curriculum.strategy = "none"
    last = 400 * 250 - 1
    assert float(method_settings(config).alpha_adv()(last)) == pytest.approx(62)
    released = _load("cifar10", "released")
    released.curriculum.strategy = "none"
    assert method_settings(released).alpha_adv() is None  # constantly 0: not computed
    released.curriculum.adv = 0.5
    assert float(method_settings(released).alpha_adv()(last)) == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_method_brings_its_recipe_to_settings_by_key(method):
    given = loading.from_settings({"distill.epochs": 7, "method": method})
    chosen = defaults.get_config()
    presets.use_method(chosen, method)
    chosen.distill.epochs = 7
    assert access.flatten(given) == access.flatten(chosen)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "cudfkd"])
def test_a_method_without_its_recipe_is_refused(method, tmp_path):
    message = rf"method={method} has none of its recipe's settings; choose it by defaults\.with_arguments"
    config = defaults.get_config()
    config.method = method
    with pytest.raises(UserError, match=f"config: {message}"):
        loading.from_settings(config)
    file = tmp_path / "mine.py"
    file.write_text(
        "from cudfkd_jax import defaults\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        f"    config.method = {method!r}\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match=message):
        loading.load(str(file))


def test_unknown_argument_is_refused():
    with pytest.raises(UserError, match=r"unknown argument .* 'tutor'.*valid: teacher, student"):
        _load("cifar10", "tutor=resnet34")
