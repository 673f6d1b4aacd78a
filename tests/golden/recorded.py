"""Which records there are, in which file each is kept, and how they are made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from golden import commands, engine, maps, metrics, signatures, store
from golden.flat import Record

HERE = Path(__file__).parent
KINDS: dict[str, dict[str, Callable[[], Record]]] = {
    "maps": maps.PARTS,
    "engine": engine.PARTS,
    "metrics": metrics.PARTS,
    "signatures": signatures.PARTS,
    "commands": commands.PARTS,
}
SLOW = frozenset((*maps.SLOW, *commands.SLOW))
NEAR = {"commands": store.Near(1e-3, 1e-4)}  # single precision, of any processor


def path_of(kind: str) -> Path:
    return HERE / (f"{kind}.json" if kind in ("signatures", "commands") else f"{kind}.npz")


def write(kind: str) -> Path:
    """Record what is there now."""
    store.write(path_of(kind), {part: make() for part, make in KINDS[kind].items()})
    return path_of(kind)


def changes(kind: str, part: str) -> list[store.Difference]:
    """What is not as it was, to the bit."""
    before, now = store.read(path_of(kind), part), KINDS[kind][part]()
    return list(store.differences(before, now, NEAR.get(kind, store.Near())))
