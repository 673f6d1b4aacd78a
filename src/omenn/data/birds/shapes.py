"""Outlines and colours of the generated birds, in the bird's own frame.

The bird looks to the right; x runs forward, y runs down, one unit is the side of the picture at
scale 1, and the origin lies in the middle of the body. Every exchangeable part is a tuple of
``Shape``: an outline and the colour it is filled with. A part's shapes are drawn in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

RED: Colour = (214, 62, 60)
GREEN: Colour = (58, 158, 88)
BLUE: Colour = (56, 108, 204)
DYES = {"red": RED, "green": GREEN, "blue": BLUE}

YELLOW: Colour = (250, 200, 44)
ORANGE: Colour = (240, 126, 38)
ROSE: Colour = (232, 96, 140)
SLATE: Colour = (66, 68, 86)
WHITE: Colour = (255, 255, 255)
INK: Colour = (30, 30, 40)


@dataclass(frozen=True, eq=False)
class Shape:
    """A filled closed outline: ``points`` (N, 2) in the bird's frame."""

    points: np.ndarray
    colour: Colour


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour that lies ``share`` of the way from ``a`` to ``b``."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.25) -> Colour:
    return mix(colour, INK, share)


def lighter(colour: Colour, share: float = 0.3) -> Colour:
    return mix(colour, WHITE, share)


def ellipse(
    x: float, y: float, rx: float, ry: float | None = None, angle: float = 0.0, count: int = 36
) -> np.ndarray:
    """Outline of an ellipse, turned by ``angle`` radians about its centre (x, y)."""
    phase = np.linspace(0, 2 * math.pi, count, endpoint=False)
    points = np.stack([rx * np.cos(phase), (rx if ry is None else ry) * np.sin(phase)], axis=1)
    return turn(points, angle) + np.array([x, y])


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points turned by ``angle`` radians about the origin, clockwise on the screen."""
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def smooth(corners: list[tuple[float, float]], steps: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through ``corners``, ``steps`` points for each of them."""
    p = np.asarray(corners, dtype=float)
    before, after, beyond = (np.roll(p, shift, axis=0) for shift in (1, -1, -2))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p, before, after, beyond = (a[:, None] for a in (p, before, after, beyond))
    curve = 0.5 * (
        2 * p
        + (after - before) * t
        + (2 * before - 5 * p + 4 * after - beyond) * t**2
        + (3 * p - before - 3 * after + beyond) * t**3
    )
    return curve.reshape(-1, 2)


def polygon(*corners: tuple[float, float]) -> np.ndarray:
    return np.asarray(corners, dtype=float)


# Body ---------------------------------------------------------------------------------------

BODY = smooth(
    [
        (0.150, -0.262),
        (0.236, -0.226),
        (0.266, -0.148),
        (0.238, -0.072),
        (0.196, 0.010),
        (0.150, 0.096),
        (0.050, 0.150),
        (-0.070, 0.140),
        (-0.172, 0.076),
        (-0.216, 0.000),
        (-0.150, -0.040),
        (-0.060, -0.066),
        (0.024, -0.106),
        (0.060, -0.176),
        (0.090, -0.238),
    ]
)


# Beaks (4 shapes) ---------------------------------------------------------------------------


def _beak_short() -> tuple[Shape, ...]:
    beak = smooth([(0.240, -0.196), (0.300, -0.172), (0.352, -0.130), (0.296, -0.116),
                   (0.240, -0.096)])  # fmt: skip
    shade = polygon((0.240, -0.134), (0.352, -0.130), (0.296, -0.116), (0.240, -0.098))
    return Shape(beak, YELLOW), Shape(shade, darker(YELLOW))


def _beak_long() -> tuple[Shape, ...]:
    beak = polygon((0.238, -0.186), (0.330, -0.156), (0.436, -0.096), (0.330, -0.118),
                   (0.244, -0.110))  # fmt: skip
    shade = polygon((0.240, -0.142), (0.436, -0.096), (0.330, -0.118), (0.244, -0.110))
    return Shape(beak, ORANGE), Shape(shade, darker(ORANGE))


def _beak_hook() -> tuple[Shape, ...]:
    beak = smooth([(0.226, -0.212), (0.306, -0.220), (0.366, -0.166), (0.364, -0.070),
                   (0.334, -0.116), (0.244, -0.100)])  # fmt: skip
    gleam = smooth([(0.250, -0.204), (0.304, -0.208), (0.346, -0.168), (0.300, -0.184)])
    return Shape(beak, ROSE), Shape(gleam, lighter(ROSE))


def _beak_spoon() -> tuple[Shape, ...]:
    beak = smooth([(0.232, -0.180), (0.296, -0.172), (0.352, -0.192), (0.402, -0.188),
                   (0.428, -0.146), (0.402, -0.104), (0.352, -0.096), (0.296, -0.112),
                   (0.232, -0.106)])  # fmt: skip
    return Shape(beak, SLATE), Shape(ellipse(0.376, -0.154, 0.034, 0.018), lighter(SLATE))


# Eyes (3 shapes) ----------------------------------------------------------------------------

_EYE = (0.166, -0.168)


def _eyes() -> tuple[tuple[Shape, ...], ...]:
    x, y = _EYE
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    radii = np.where(np.arange(16) % 2 == 0, 0.080, 0.044)
    star = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
    lid = np.concatenate([ellipse(x, y, 0.066)[18:], [[x + 0.066, y + 0.008]]])
    violet = (122, 84, 176)
    return (
        (
            Shape(ellipse(x, y, 0.066), darker(SLATE, 0.2)),
            Shape(ellipse(x, y, 0.058), WHITE),
            Shape(ellipse(x + 0.010, y, 0.032), INK),
            Shape(ellipse(x + 0.020, y - 0.012, 0.011), WHITE),
        ),
        (
            Shape(ellipse(x, y, 0.066), violet),
            Shape(ellipse(x, y + 0.006, 0.056), (255, 214, 64)),
            Shape(ellipse(x + 0.008, y + 0.012, 0.026), INK),
            Shape(lid, violet),
        ),
        (
            Shape(star, INK),
            Shape(ellipse(x, y, 0.042), (64, 214, 222)),
            Shape(ellipse(x, y, 0.018), INK),
        ),
    )


# Feet (4 shapes; each is a pair) --------------------------------------------------------------


def _foot_toes(x: float) -> tuple[Shape, ...]:
    leg = polygon((x - 0.012, 0.12), (x + 0.012, 0.12), (x + 0.012, 0.262), (x - 0.012, 0.262))
    toes = polygon(
        (x - 0.012, 0.236), (x + 0.012, 0.236), (x + 0.082, 0.290), (x + 0.058, 0.298),
        (x + 0.020, 0.276), (x + 0.012, 0.302), (x - 0.012, 0.302), (x - 0.010, 0.276),
        (x - 0.042, 0.298), (x - 0.062, 0.288),
    )  # fmt: skip
    return Shape(leg, ORANGE), Shape(toes, darker(ORANGE, 0.12))


def _foot_web(x: float) -> tuple[Shape, ...]:
    leg = polygon((x - 0.016, 0.12), (x + 0.016, 0.12), (x + 0.016, 0.230), (x - 0.016, 0.230))
    web = smooth([(x - 0.020, 0.206), (x + 0.020, 0.206), (x + 0.106, 0.262), (x + 0.040, 0.266),
                  (x + 0.010, 0.286), (x - 0.030, 0.268)])  # fmt: skip
    return Shape(leg, ROSE), Shape(web, ROSE), Shape(web * 0.6 + 0.4 * web.mean(0), lighter(ROSE))


def _foot_trousers(x: float) -> tuple[Shape, ...]:
    brown = (142, 86, 48)
    thigh = smooth([(x - 0.052, 0.100), (x + 0.052, 0.100), (x + 0.046, 0.176), (x, 0.222),
                    (x - 0.046, 0.176)])  # fmt: skip
    claw = smooth([(x - 0.024, 0.212), (x + 0.026, 0.212), (x + 0.052, 0.252), (x - 0.024, 0.252)])
    return (
        Shape(claw, YELLOW),
        Shape(thigh, brown),
        Shape(thigh * 0.55 + 0.45 * thigh.mean(0), lighter(brown, 0.25)),
    )


def _foot_stilts(x: float) -> tuple[Shape, ...]:
    teal = (30, 150, 160)
    leg = polygon((x - 0.014, 0.12), (x + 0.014, 0.12), (x + 0.030, 0.220), (x + 0.002, 0.330),
                  (x - 0.026, 0.330), (x - 0.002, 0.220))  # fmt: skip
    knee = ellipse(x + 0.014, 0.222, 0.030)
    hoof = polygon((x - 0.040, 0.318), (x + 0.030, 0.318), (x + 0.042, 0.346), (x - 0.046, 0.346))
    return Shape(leg, teal), Shape(hoof, darker(teal)), Shape(knee, lighter(teal, 0.35))


_FOOT_MAKERS = (_foot_toes, _foot_web, _foot_trousers, _foot_stilts)
FOOT_NEAR, FOOT_FAR = 0.086, -0.058


# Tails (3 shapes, 3 colours) ------------------------------------------------------------------


def _tail_fan(colour: Colour) -> tuple[Shape, ...]:
    feathers = []
    for index, angle in enumerate((-0.62, -0.31, 0.0, 0.31, 0.62)):
        feather = turn(ellipse(-0.118, 0, 0.120, 0.042), angle)
        feathers.append(Shape(feather, colour if index % 2 else darker(colour, 0.2)))
    spots = [
        Shape(turn(ellipse(-0.192, 0, 0.022), angle), lighter(colour, 0.6))
        for angle in (-0.62, -0.31, 0.0, 0.31, 0.62)
    ]
    return *feathers, *spots


def _tail_fork(colour: Colour) -> tuple[Shape, ...]:
    fork = polygon((0.02, -0.044), (-0.10, -0.070), (-0.262, -0.130), (-0.170, -0.026),
                   (-0.130, 0.0), (-0.170, 0.026), (-0.262, 0.130), (-0.10, 0.070),
                   (0.02, 0.044))  # fmt: skip
    stripe = polygon(
        (0.0, -0.020), (-0.09, -0.044), (-0.230, -0.112), (-0.100, -0.020), (-0.08, 0.0)
    )
    return Shape(fork, colour), Shape(stripe, lighter(colour))


def _tail_plume(colour: Colour) -> tuple[Shape, ...]:
    plume = smooth([(0.02, -0.036), (-0.06, -0.046), (-0.108, -0.092), (-0.122, -0.160),
                    (-0.130, -0.230), (-0.188, -0.230), (-0.192, -0.130), (-0.154, -0.040),
                    (-0.076, 0.018), (0.02, 0.036)])  # fmt: skip
    curl = ellipse(-0.158, -0.222, 0.062)
    return (
        Shape(plume, colour),
        Shape(curl, colour),
        Shape(ellipse(-0.158, -0.222, 0.034), lighter(colour, 0.6)),
    )


_TAIL_MAKERS = (_tail_fan, _tail_fork, _tail_plume)
TAIL_ROOT = (-0.176, 0.016)


# Wings (2 shapes, 3 colours) ------------------------------------------------------------------


def _wing_leaf(colour: Colour) -> tuple[Shape, ...]:
    leaf = smooth([(0.070, -0.020), (0.020, -0.066), (-0.080, -0.074), (-0.190, -0.040),
                   (-0.150, 0.036), (-0.060, 0.072), (0.030, 0.056)])  # fmt: skip
    inner = leaf * 0.62
    return Shape(leaf, colour), Shape(inner, lighter(colour, 0.28)), Shape(inner * 0.55, colour)


def _wing_fingers(colour: Colour) -> tuple[Shape, ...]:
    shapes = [
        Shape(turn(ellipse(-0.120, 0.0, 0.112, 0.026), angle) + np.array([0.0, 0.010]), shade)
        for angle, shade in (
            (-0.22, darker(colour, 0.22)),
            (0.14, colour),
            (0.50, darker(colour, 0.22)),
            (0.86, colour),
        )
    ]
    return (
        *shapes,
        Shape(ellipse(0.004, 0.006, 0.070, 0.060), colour),
        Shape(ellipse(0.010, 0.0, 0.042, 0.034), WHITE),
    )


_WING_MAKERS = (_wing_leaf, _wing_fingers)
WING_NEAR, WING_FAR = (0.010, 0.010), (-0.010, -0.060)

# Tables ---------------------------------------------------------------------------------------
# Instance k of a dyed part has shape k % (number of shapes) and dye k // (number of shapes),
# the order of FunnyBirds' parts.json.

BEAKS = (_beak_short(), _beak_long(), _beak_hook(), _beak_spoon())
EYES = _eyes()
FEET = tuple((make(FOOT_NEAR), make(FOOT_FAR)) for make in _FOOT_MAKERS)
TAILS = tuple(make(dye) for dye in DYES.values() for make in _TAIL_MAKERS)
WINGS = tuple(make(dye) for dye in DYES.values() for make in _WING_MAKERS)
BEAK_COLOURS = ("yellow", "orange", "rose", "slate")
