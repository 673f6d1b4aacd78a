"""Tiny folders in the official layouts, whose pictures are squares on a ground of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TENCH, GOLDFISH, RETRIEVER = "n01440764", "n01443537", "n02099601"
NUMBERS = {TENCH: 0, GOLDFISH: 1, RETRIEVER: 207}
"""The classes as ImageNet's models number them."""

SIZE = (20, 16)
BOX = (4, 2, 12, 10)
"""Left, top, right, bottom of the square, the last two not in it; in pixels from 0."""


def picture(path: Path, seed: int = 0) -> None:
    """A white square on noise."""
    pixels = np.random.default_rng(seed).integers(0, 200, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    left, top, right, bottom = BOX
    pixels[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def segmentation(path: Path, number: int, palette: bool) -> None:
    """The number where the square is, 0 elsewhere: as a palette's, or as a colour."""
    ids = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    left, top, right, bottom = BOX
    ids[top:bottom, left:right] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    if palette:
        image = Image.fromarray(ids, mode="L").convert("P")
        image.putpalette([level for level in range(256) for _ in range(3)])
        image.putdata(ids.flatten().tolist())
    else:
        image = Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], 2))
    image.save(path)


def annotation(path: Path, name: str, first: int) -> None:
    """The square as a box; ``first``: what the first pixel is called."""
    left, top, right, bottom = BOX
    corners = {"xmin": left + first, "ymin": top + first, "xmax": right, "ymax": bottom}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation>{size}<object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
    )


def imagenet(root: Path, *, each: int = 2, boxes: int = 99, train: bool = False) -> Path:
    """``each`` pictures of three classes; ``boxes``: how many of a class are annotated."""
    for synset in NUMBERS:
        for number in range(each):
            picture(root / f"val/{synset}/{synset}_{number}.JPEG", number)
            if number < boxes:
                annotation(root / f"Annotations/CLS-LOC/val/{synset}_{number}.xml", synset, 0)
            if train:
                picture(root / f"train/{synset}/{synset}_t{number}.JPEG", 50 + number)
    return root


def imagenet_s(root: Path, *, each: int = 2) -> Path:
    """``each`` pictures of three classes with their segmentation."""
    for place, synset in enumerate(NUMBERS):
        for number in range(each):
            picture(root / f"validation/{synset}/{number}.JPEG", number)
            target = root / f"validation-segmentation/{synset}/{number}.png"
            segmentation(target, place + 1, palette=False)
    return root


def voc(root: Path, names: tuple[str, ...] = ("aeroplane", "bird", "cat", "dog")) -> Path:
    """A picture of each class in ``VOCdevkit/VOC2012``, all in the sets val and train."""
    inside = root / "VOCdevkit/VOC2012"
    ids = [f"2008_00000{number}" for number in range(len(names))]
    from omenn.data.voc import CLASSES

    for number, (name, each) in enumerate(zip(names, ids, strict=True)):
        picture(inside / f"JPEGImages/{each}.jpg", number)
        annotation(inside / f"Annotations/{each}.xml", name, 1)
        target = inside / f"SegmentationClass/{each}.png"
        segmentation(target, CLASSES.index(name) + 1, palette=True)
    for split in ("val", "train"):
        for kind in ("Segmentation", "Main"):
            listed = inside / f"ImageSets/{kind}/{split}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{each}\n" for each in ids))
    return root
