"""A folder as people have them: ten classes of JPEG photographs of 400 pixels, made of pictures that packages ship.

    pip download scikit-image==0.26.0 --no-deps && unzip -q scikit_image-*.whl 'skimage/data/*'
    python -m benchmarks.own_pictures pictures --photographs skimage/data [--train 100] [--test 40] [--seed 0]

A class is one photograph: eight of scikit-image's, two of scikit-learn's. Training images are crops of its left three
fifths, test images of its right two fifths: no pixel is in both. Crops differ in place, size, shape, brightness,
contrast and saturation, so that colour tells little, and half of them are mirrored. Then run `mdc condense pictures`;
what it gave is in docs/results/own_pictures.md.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SIDE = 400
"""Short side of the pictures."""
TRAIN_SHARE = 0.6
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
SCIKIT_IMAGE = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
)


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photographs", type=Path, required=True, help="scikit-image's skimage/data")
    parser.add_argument("--train", type=int, default=100, help="training images per class")
    parser.add_argument("--test", type=int, default=40, help="test images per class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drawn = np.random.default_rng(args.seed)
    shipped = Path(str(files("sklearn.datasets.images")))
    for path in (
        *(shipped / name for name in SCIKIT_LEARN),
        *(args.photographs / name for name in SCIKIT_IMAGE),
    ):
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        edge = round(TRAIN_SHARE * photograph.width)
        fill(
            args.folder / "train" / path.stem,
            photograph.crop((0, 0, edge, photograph.height)),
            args.train,
            drawn,
        )
        right = photograph.crop((edge, 0, photograph.width, photograph.height))
        fill(args.folder / "test" / path.stem, right, args.test, drawn)


def fill(folder: Path, part: Image.Image, count: int, drawn: np.random.Generator) -> None:
    """Write so many pictures of a part of a photograph."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(part, drawn).save(folder / f"{number:03}.jpg", quality=90)


def picture(part: Image.Image, drawn: np.random.Generator) -> Image.Image:
    """A changed crop of the part with a short side of `SIDE` pixels."""
    short = round(min(part.size) * drawn.uniform(0.2, 0.8))
    long = min(max(part.size), round(short * drawn.uniform(1.0, 1.4)))
    width, height = (short, long) if part.width <= part.height else (long, short)
    left = int(drawn.integers(part.width - width + 1))
    top = int(drawn.integers(part.height - height + 1))
    crop = part.crop((left, top, left + width, top + height))
    crop = crop.resize((SIDE * width // short, SIDE * height // short), Image.Resampling.BICUBIC)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        crop = change(crop).enhance(drawn.uniform(0.5, 1.5))
    crop = ImageEnhance.Color(crop).enhance(drawn.uniform(0, 1))
    return ImageOps.mirror(crop) if drawn.random() < 0.5 else crop


if __name__ == "__main__":
    main()
