"""Distils the teacher of a run on the digits, in twenty lines.

cudfkd --config=digits --stage=teacher --workdir=runs/digits
python examples/distill_run.py
"""

import cudfkd_jax

result = cudfkd_jax.distill(
    teacher="runs/digits",
    student="wrn16_1",
    config=cudfkd_jax.load_config("digits"),
    image_shape=(16, 16, 1),
    num_classes=10,
    mean=0.3058,
    std=0.3191,
    workdir="runs/from_python",
)
print(result)
print(result.export("safetensors"))
