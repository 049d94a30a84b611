"""Makes the strips of synthetic images in README.md and docs/ from pictures of recorded runs.

    python scripts/picture_strip.py

`STRIPS` says which pictures of a run's `samples/` each strip is made of, one line per picture. To show another
run, change its line there, and the line under the strip, whose figures tests compare with the run's.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/images"
STRIPS = {
    "strip.png": ("results/gpu/flagship/samples/epoch_0002.png", "results/gpu/flagship/samples/epoch_0061.png"),
    "digits.png": ("results/digits/epoch_0003.png", "results/digits/epoch_0015.png"),
}
_ROWS, _SIDE_BY_SIDE = 8, 2  # a picture holds 8 × 8 images


def strip(sources: Sequence[str]) -> Image.Image:
    """Returns one line per picture, with its first two rows of images beside each other."""
    pictures = [Image.open(ROOT / source).convert("RGB") for source in sources]
    width, pitch = pictures[0].width, pictures[0].height // _ROWS
    made = Image.new("RGB", (width * _SIDE_BY_SIDE, pitch * len(pictures)))
    for line, picture in enumerate(pictures):
        for row in range(_SIDE_BY_SIDE):
            top = round(row * picture.height / _ROWS)
            made.paste(picture.crop((0, top, width, top + pitch)), (row * width, line * pitch))
    return made


if __name__ == "__main__":
    for name, sources in STRIPS.items():
        strip(sources).save(FOLDER / name)
