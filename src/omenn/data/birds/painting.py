"""From a scene to pixels, layer by layer: the picture and its part map.

A scene becomes a list of layers, from back to front, each with an owner ("body", a part, or the
number of a background object) and the outlines to fill. A picture is drawn several times larger
than asked for and averaged down; a part map is drawn at the same resolution, and its pixels take
the colour of the middle. To remove something is to skip its layers: nothing else can change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from omenn.check import choose, whole
from omenn.data.birds import shapes
from omenn.data.birds.scenes import PARTS, Backdrop, PartName, Scene, checked_object
from omenn.data.birds.shapes import Colour, Shape, darker, lighter, mix

MAP_COLOURS: dict[str, Colour] = {
    "body": (170, 170, 170),
    "eye": (255, 255, 253),
    "beak": (255, 255, 0),
    "foot": (255, 0, 1),
    "foot far": (255, 0, 2),
    "wing": (0, 255, 1),
    "wing far": (0, 255, 2),
    "tail": (0, 0, 255),
}
"""FunnyBirds' colours of the part map; background object k has (204, 204, 204 + k)."""

_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((176, 212, 238), (240, 246, 244)),
    ((250, 222, 190), (252, 244, 226)),
    ((196, 226, 210), (242, 248, 234)),
    ((216, 206, 238), (246, 238, 244)),
    ((150, 178, 206), (214, 224, 226)),
    ((244, 206, 204), (250, 238, 228)),
)
_PLUMAGES: tuple[Colour, ...] = (
    (250, 246, 236),
    (222, 216, 208),
    (206, 212, 222),
    (240, 226, 204),
)
_BACKDROP_COLOURS: tuple[Colour, ...] = (
    (150, 190, 170),
    (232, 180, 150),
    (160, 176, 214),
    (226, 204, 140),
    (198, 164, 196),
)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Outlines in picture coordinates (0 to 1), filled in order."""

    owner: PartName | int | None  # None: the body
    map_colour: Colour
    shapes: list[Shape]
    shaded: bool = False


class _Pose(NamedTuple):
    """The affine map from the bird's frame to the picture: points @ matrix + offset."""

    matrix: np.ndarray
    offset: np.ndarray

    def place(self, points: np.ndarray) -> np.ndarray:
        return points @ self.matrix + self.offset


def _pose(scene: Scene) -> _Pose:
    c, s = math.cos(scene.tilt), math.sin(scene.tilt)
    matrix = scene.scale * np.array([[c, s], [-s, c]])
    matrix[:, 0] *= scene.facing
    return _Pose(matrix, np.array([0.5 + scene.x, 0.49 + scene.y]))


def _joint(parts: tuple[Shape, ...], angle: float, root: tuple[float, float]) -> list[Shape]:
    return [Shape(shapes.turn(s.points, angle) + root, s.colour) for s in parts]


def _bird(scene: Scene) -> Iterator[_Layer]:
    """The layers of the bird in its own frame, from back to front."""
    tail = [] if scene.tail is None else _joint(
        shapes.TAILS[scene.tail], scene.tail_angle, shapes.TAIL_ROOT
    )  # fmt: skip
    near, far = ([], []) if scene.foot is None else shapes.FEET[scene.foot]
    wing, wing_far = [], []
    if scene.wing is not None:
        instance = shapes.WINGS[scene.wing]
        wing = _joint(instance, scene.wing_angle, shapes.WING_NEAR)
        wing_far = _joint(instance, scene.wing_angle + 0.75, shapes.WING_FAR)
        wing_far = [Shape(s.points, darker(s.colour, 0.2)) for s in wing_far]
    far = [Shape(s.points, darker(s.colour, 0.15)) for s in far]
    body = _PLUMAGES[scene.plumage]
    yield _Layer("wing", MAP_COLOURS["wing far"], wing_far)
    yield _Layer("tail", MAP_COLOURS["tail"], tail)
    yield _Layer("foot", MAP_COLOURS["foot far"], far)
    yield _Layer("foot", MAP_COLOURS["foot"], list(near))
    yield _Layer(None, MAP_COLOURS["body"], [Shape(shapes.BODY, body)], shaded=True)
    yield _Layer("wing", MAP_COLOURS["wing"], wing)
    beak = [] if scene.beak is None else list(shapes.BEAKS[scene.beak])
    yield _Layer("beak", MAP_COLOURS["beak"], beak)
    eye = [] if scene.eye is None else list(shapes.EYES[scene.eye])
    yield _Layer("eye", MAP_COLOURS["eye"], eye)


def _backdrop_outline(item: Backdrop) -> np.ndarray:
    if item.kind == 0:
        unit = shapes.ellipse(0, 0, 1.0)
    elif item.kind == 1:
        unit = shapes.smooth([(-0.8, -0.8), (0, -0.9), (0.8, -0.8), (0.9, 0), (0.8, 0.8), (0, 0.9),
                              (-0.8, 0.8), (-0.9, 0)])  # fmt: skip
    elif item.kind == 2:
        unit = shapes.polygon((0, -1.0), (0.95, 0.7), (-0.95, 0.7))
    elif item.kind == 3:
        unit = shapes.smooth([(-1.3, 0), (-0.3, -0.5), (1.3, 0), (-0.3, 0.5)])
    else:
        angles = np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.55)
        unit = np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)
    return shapes.turn(unit, item.angle) * item.size + (item.x, item.y)


def _layers(scene: Scene) -> Iterator[_Layer]:
    sky = _SKIES[scene.sky]
    for number, item in enumerate(scene.backdrop):
        colour = mix(_BACKDROP_COLOURS[item.colour], sky[0], 0.25)
        outline = _backdrop_outline(item)
        inner = outline * 0.6 + 0.4 * np.array([item.x, item.y])
        drawn = [Shape(outline, colour), Shape(inner, lighter(colour, 0.25))]
        yield _Layer(number, (204, 204, 204 + number), drawn)
    pose = _pose(scene)
    for layer in _bird(scene):
        placed = [Shape(pose.place(s.points), s.colour) for s in layer.shapes]
        yield _Layer(layer.owner, layer.map_colour, placed, layer.shaded)


def _kept(
    scene: Scene, size: int, without: Collection[str], without_background: Collection[int]
) -> list[_Layer]:
    whole("size", size, 8)
    for part in without:
        choose("without", part, PARTS)
    for number in without_background:
        checked_object(number, len(scene.backdrop))
    removed = set(without) | set(without_background)
    return [layer for layer in _layers(scene) if layer.owner not in removed]


@lru_cache(maxsize=4)
def _ramps(side: int) -> tuple[Image.Image, Image.Image]:
    """A vertical ramp (top black) of the canvas' size, and a radial one (middle black)."""
    return Image.linear_gradient("L").resize((side, side)), Image.radial_gradient("L")


def _tinted(ramp: Image.Image, dark: Colour, light: Colour) -> Image.Image:
    """``ramp`` (0 to 255) as a course of colours from ``dark`` to ``light``."""
    share = np.arange(256) / 255
    ends = zip(dark, light, strict=True)
    return Image.merge("RGB", [ramp.point(list((a + (b - a) * share).round())) for a, b in ends])


def _flat(points: np.ndarray, side: int) -> list[float]:
    # Pillow's polygon covers its outline: half a pixel less brings the middle of pixels to .5.
    return (points * side - 0.5).ravel().tolist()


def _shade(canvas: Image.Image, shape: Shape, scene: Scene, side: int) -> None:
    """Fill a shape with a soft course from a lit spot to shadow, on the side of the light."""
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(_flat(shape.points, side), fill=255)
    low, high = shape.points.min(axis=0), shape.points.max(axis=0)
    spot = np.array([math.cos(scene.light_angle), math.sin(scene.light_angle)]) * 0.06
    spot += (low + high) / 2 + (0, -0.05)
    reach = float(np.max(high - low)) * 0.95
    box = [round(v * side) for v in (*(spot - reach), *(spot + reach))]
    ramp = _ramps(side)[1].resize((box[2] - box[0], box[3] - box[1]))
    course = _tinted(ramp, lighter(shape.colour, 0.5), mix(shape.colour, (92, 84, 120), 0.55))
    window = mask.crop(tuple(box))
    canvas.paste(course, (box[0], box[1]), window)


def _lit(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    """Brighten the picture towards the light: a factor linear in the place, one in the middle."""
    size = pixels.shape[0]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    slope = place[None, :] * math.cos(scene.light_angle) + place[:, None] * math.sin(
        scene.light_angle
    )
    factor = (1 + scene.light * slope).astype(np.float32)
    return np.clip(pixels * factor[:, :, None] + 0.5, 0, 255).astype(np.uint8)


def _oversampling(size: int) -> int:
    return 4 if size <= 128 else 3


def render(
    scene: Scene,
    size: int = 256,
    *,
    without: Collection[str] = (),
    without_background: Collection[int] = (),
) -> Image.Image:
    """The picture of a scene, ``size`` × ``size`` RGB, optionally with something removed.

    ``without`` names parts, ``without_background`` the numbers of background objects. Every pixel
    that neither touches stays the same. Raises InputError for an unknown part, object or size.

    >>> from omenn.data.birds import sample_scene
    >>> render(sample_scene(0, "test"), 32, without=["beak", "wing"]).size
    (32, 32)
    """
    layers = _kept(scene, size, without, without_background)
    factor = _oversampling(size)
    side = size * factor
    top, bottom = _SKIES[scene.sky]
    canvas = _tinted(_ramps(side)[0], top, bottom)
    pen = ImageDraw.Draw(canvas)
    for layer in layers:
        for shape in layer.shapes:
            if layer.shaded:
                _shade(canvas, shape, scene, side)
            else:
                pen.polygon(_flat(shape.points, side), fill=shape.colour)
    pixels = np.asarray(canvas.reduce(factor), dtype=np.float32)
    return Image.fromarray(_lit(pixels, scene))


def part_map(
    scene: Scene,
    size: int = 256,
    *,
    without: Collection[str] = (),
    without_background: Collection[int] = (),
) -> Image.Image:
    """Who owns each pixel, in FunnyBirds' colours (``MAP_COLOURS``); arguments as for ``render``.

    >>> from omenn.data.birds import sample_scene
    >>> part_map(sample_scene(0, "test"), 32).getpixel((0, 0))
    (0, 0, 0)
    """
    layers = _kept(scene, size, without, without_background)
    factor = _oversampling(size)
    canvas = Image.new("RGB", (size * factor, size * factor))
    pen = ImageDraw.Draw(canvas)
    for layer in layers:
        for shape in layer.shapes:
            pen.polygon(_flat(shape.points, size * factor), fill=layer.map_colour)
    middle = np.asarray(canvas)[factor // 2 :: factor, factor // 2 :: factor]
    return Image.fromarray(np.ascontiguousarray(middle))
