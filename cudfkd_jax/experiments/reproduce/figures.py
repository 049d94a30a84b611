"""Figures 2 to 5: comparisons of methods, and CuDFKD early and late in training."""

from collections.abc import Sequence
from typing import Any

from cudfkd_jax.experiments.paper_numbers import R34_R18, W40_W40
from cudfkd_jax.experiments.reproduce.entry import Entry, Run, Setting, methods
from cudfkd_jax.experiments.reproduce.tables import (
    CIFAR10_EPOCHS,
    CIFAR100_EPOCHS,
    CPU,
    CPU_EPOCHS,
    CPU_IMAGES,
    CPU_LENGTH,
    CPU_METHODS,
    CPU_SEEDS,
    CPU_SHORT,
    DIGITS,
    DIGITS_EPOCHS,
    EQUAL_EPOCHS,
    ONE_SEED,
    on_cpu,
    on_digits,
)

SEEDS = (0, 10, 20)  # of Figure 4
LIKE_THE_DEMO = "On the digits wrn16_2 → wrn16_1, 15 epochs of 100 student steps."
LAST = "Drawn are the last students; the table has the best epochs too."


def _noise(
    scale: str,
    pair: tuple[str, str],
    names: Sequence[str],
    epochs: int,
    changes: dict[str, Any],
    seeds: Sequence[int] = SEEDS,
) -> list[Run]:
    """Returns the methods' runs with the clean and the noisy teacher."""
    return [
        run
        for column, noisy in (("clean teacher", False), ("noisy teacher", True))
        for run in methods(
            *(scale, pair, names),
            epochs=epochs,
            seeds=dict.fromkeys(names, seeds),
            changes=changes,
            noisy=noisy,
            column=column,
        )
    ]


FIGURES = (
    Entry(
        "fig2",
        "Figure 2: loyalty over the test images",
        "More of CuDFKD's images have a high loyalty than of ADI's and CMI's, and the first peak lies further to "
        "the right.",
        "loyalty",
        {
            "digits": Setting(
                on_digits(("cudfkd", "adi", "cmi")),
                choices=(f"{LIKE_THE_DEMO} The runs of table2, seed 0.",),
            ),
            "cifar10_cpu": Setting(
                on_cpu(("cudfkd", "adi", "cmi")),
                choices=(f"The runs of table2, seed 0: {CPU_LENGTH}", CPU_IMAGES),
                too_small=CPU_SHORT,
            ),
            "cifar10": Setting(
                methods("cifar10", W40_W40, ("cudfkd", "adi", "cmi"), epochs=CIFAR10_EPOCHS),
                choices=(
                    "The text says CIFAR-10 and WRN-40-2 → WRN-40-1, the caption CIFAR-100 and ResNet-34 → "
                    "ResNet-18: here as the text, at --scale=cifar100 as the caption.",
                    EQUAL_EPOCHS,
                ),
            ),
            "cifar100": Setting(
                methods("cifar100", R34_R18, ("cudfkd", "adi", "cmi"), epochs=CIFAR100_EPOCHS["resnet34"]),
                choices=(
                    "The text says CIFAR-10 and WRN-40-2 → WRN-40-1, the caption CIFAR-100 and ResNet-34 → "
                    "ResNet-18: here as the caption, at --scale=cifar10 as the text.",
                    EQUAL_EPOCHS,
                ),
            ),
        },
    ),
    Entry(
        "fig3",
        "Figure 3: accuracy over the epochs",
        "CuDFKD passes 90 % on CIFAR-10 within 30 epochs, improves to the end and swings less than the others.",
        "curves",
        {
            "digits": Setting(
                on_digits(("cudfkd", "dafl", "zskt", "adi", "dfq", "cmi")),
                choices=(f"{LIKE_THE_DEMO} The runs of table2, seed 0; the methods are those of Table II.",),
                too_small="A learning rate that falls to 0 within 15 epochs leaves little time to swing.",
            ),
            "cifar10_cpu": Setting(
                on_cpu(CPU_METHODS),
                choices=(
                    f"All nine methods, the runs of table2, seed 0: {CPU_LENGTH}",
                    CPU_IMAGES,
                    "Accuracy stands over the student's steps and over the minutes that they, synthesis and the "
                    "measuring took on this machine.",
                ),
                too_small=CPU_SHORT,
                form="progress",
            ),
            "cifar10": Setting(
                methods(
                    *("cifar10", R34_R18, ("cudfkd", "dafl", "zskt", "adi", "dfq", "cmi", "pre_dfkd")),
                    epochs=CIFAR10_EPOCHS,
                ),
                choices=("The text does not list the methods: those of Table II.", EQUAL_EPOCHS, ONE_SEED),
            ),
            "cifar100": Setting(
                methods(
                    *("cifar100", R34_R18, ("cudfkd", "dafl", "zskt", "adi", "dfq", "cmi", "pre_dfkd")),
                    epochs=CIFAR100_EPOCHS["resnet34"],
                ),
                choices=(
                    "The caption says 300 epochs and the released script 400: 400, the runs of table3.",
                    "The text does not list the methods: those of Table III.",
                    EQUAL_EPOCHS,
                    ONE_SEED,
                ),
            ),
        },
    ),
    Entry(
        "fig4",
        "Figure 4: a clean and a noisy teacher",
        "From a teacher of 94.07 % CuDFKD reaches more than 93.3 %, and its loyalty rises; DAFL loses much, "
        "CuDFKD and CMI less than ADI and DAFL, and CuDFKD varies less than CMI. Seeds 0, 10 and 20.",
        "bars",
        {
            "digits": Setting(
                _noise("digits", DIGITS, ("dafl", "cudfkd"), DIGITS_EPOCHS, {}),
                choices=(
                    f"{LIKE_THE_DEMO} The noisy teacher's training ends at the first epoch with 94 % on the test "
                    "images. DAFL and CuDFKD alone, for time.",
                    LAST,
                ),
            ),
            "cifar10_cpu": Setting(
                _noise("cifar10_cpu", CPU, ("dafl", "cudfkd"), CPU_EPOCHS, {}, CPU_SEEDS),
                choices=(
                    f"DAFL and CuDFKD alone, for time; the clean teacher's are the runs of table2: {CPU_LENGTH} "
                    "Seeds 0 and 1.",
                    CPU_IMAGES,
                    "The noisy teacher has a schedule of 15 epochs in the place of 30, and ends at the first one"
                    " with 88 % on the test images.",
                    LAST,
                ),
                too_small=CPU_SHORT,
            ),
            "cifar10": Setting(
                _noise(
                    *("cifar10", R34_R18, ("dafl", "adi", "cmi", "cudfkd"), CIFAR10_EPOCHS),
                    {"distill.batch_size": 768},
                ),
                choices=(
                    "The noisy teacher's training ends at the first epoch with 94.07 % on the test images; the "
                    "paper says only that it was trained too little.",
                    "The three seeds are the students', of one teacher; the paper does not say.",
                    "The batch of 768 is that of every method's student, as the text says.",
                    EQUAL_EPOCHS,
                    LAST,
                ),
            ),
        },
    ),
    Entry(
        "fig5",
        "Figure 5: difficulty early and late",
        "After 10 epochs the difficulties have a sharp peak at low values; after 300 they are higher and spread "
        "out, and images of one class differ more (b, c).",
        "difficulty",
        {
            "digits": Setting(
                on_digits(("cudfkd",)),
                choices=(
                    f"{LIKE_THE_DEMO} Epochs 3 and 15 in the place of 10 and 300; the run of table2, seed 0.",
                ),
                too_small="In 15 epochs difficulties fall, as the student learns faster than α_adv(t), from 0.5 "
                "to 0.85, makes images harder.",
                epochs=(3, 15),
            ),
            "cifar100": Setting(
                methods("cifar100", W40_W40, ("cudfkd",), epochs=CIFAR100_EPOCHS["wrn40_2"]),
                choices=(
                    "The caption names WRN-40-1 as the student and the text WRN-16-2: WRN-40-1.",
                    "The text calls the early distribution B and then A; the early one is meant to have the peak.",
                    "Difficulty is the student's loss, D of Eq. 6; the text also speaks of one that is computed "
                    "from arg max z_t, and does not define it.",
                ),
                epochs=(10, 300),
            ),
        },
    ),
)
