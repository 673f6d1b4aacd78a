"""Invented birds with exchangeable parts, drawn with numpy and Pillow; exact interventions.

A bird has a body and five parts: beak (4 instances), eye (3), foot (4), tail (9: three shapes in
three colours) and wing (6: two shapes in three colours). Fifty classes are fifty combinations.
Parts, part maps, interventions and files follow FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023,
arXiv 2308.06248); the drawing is our own. Everything is a function of (seed, split, index).

    >>> scene = sample_scene(3, "test")
    >>> scene.class_index, render(scene, 64).size
    (3, (64, 64))
    >>> without_beak = render(scene, 64, without=["beak"])
"""

from omenn.data.birds.dataset import write
from omenn.data.birds.painting import part_map, render
from omenn.data.birds.scenes import (
    CLASS_NAMES,
    CLASSES,
    INSTANCES,
    PARTS,
    Backdrop,
    Scene,
    Split,
    compatible,
    sample_scene,
)

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "INSTANCES",
    "PARTS",
    "Backdrop",
    "Scene",
    "Split",
    "compatible",
    "part_map",
    "render",
    "sample_scene",
    "write",
]
