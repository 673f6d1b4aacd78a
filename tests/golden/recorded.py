"""Which records there are, in which file each is kept, and how they are made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from golden import engine, maps, store
from golden.flat import Record

HERE = Path(__file__).parent
KINDS: dict[str, dict[str, Callable[[], Record]]] = {"maps": maps.PARTS, "engine": engine.PARTS}
SLOW = frozenset(maps.SLOW)


def path_of(kind: str) -> Path:
    return HERE / f"{kind}.npz"


def write(kind: str) -> Path:
    """Record what is there now."""
    store.write(path_of(kind), {part: make() for part, make in KINDS[kind].items()})
    return path_of(kind)


def changes(kind: str, part: str) -> list[store.Difference]:
    """What is not as it was, to the bit."""
    before = store.read(path_of(kind), part)
    return list(store.differences(before, KINDS[kind][part]()))
