"""What an answer of the model and a map cost, and how many pictures a budget is enough for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from omenn.errors import InputError


class Arithmetic(TorchDispatchMode):
    """Counts operations: the products of layers, and one for every number that is computed.

    NOTE [passes] A map costs as many passes as its operations are times those of one forward pass.
    The count is the same on every machine and for every run, so a budget of passes buys the same
    pictures, and the result depends on the seed alone.

    >>> import torch
    >>> with Arithmetic() as counted:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counted.operations
    74
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        several = out if isinstance(out, (tuple, list)) else (out,)
        self.operations += sum(one.numel() for one in several if isinstance(one, Tensor))
        return out


def operations(call: Callable[[], Any]) -> int:
    """How many operations a call takes."""
    with Arithmetic() as counted:
        call()
    return max(1, counted.operations)


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Costs:
    """What one picture costs, in passes or in seconds.

    ``unit``: ``"passes"`` or ``"seconds"``. ``answers``: the model without each union of cells.
    ``maps``: one map of each candidate, by its name; the first is what the others have to beat.
    ``check``: insertion and deletion by one map, on a held-out picture. ``trivial``: how many maps
    are checked that do not depend on the model.
    """

    unit: str
    answers: float
    maps: Mapping[str, float]
    check: float
    trivial: int

    def pair(self, left_out: frozenset[str] = frozenset()) -> float:
        """Of one picture to choose by and one held-out picture, without some candidates."""
        maps = {name: cost for name, cost in self.maps.items() if name not in left_out}
        finalists = next(iter(maps.values())) + max(maps.values())
        checks = (2 + self.trivial) * self.check
        return 2 * self.answers + sum(maps.values()) + finalists + checks


@dataclass(frozen=True)
class Extent:
    """How many pictures each half has, and which candidates are too dear for the budget."""

    pictures: int
    left_out: frozenset[str] = frozenset()


def extent(costs: Costs, budget: float | None, pictures: int, least: int) -> Extent:
    """As many of ``pictures`` a half as the budget is enough for, ``least`` at the least.

    If it is not enough for all of them, candidates go, the dearest first, that cost as much as all
    answers of the model for a picture: another picture says more than they do.

    Raises:
        InputError: the budget is not enough for ``least`` pictures a half.

    >>> costs = Costs("passes", 66, {"omenn": 4.0, "gamma": 6.0, "dear": 70.0}, 22, 4)
    >>> extent(costs, None, 8, 2) == Extent(8)
    True
    >>> extent(costs, 2500, 8, 2)
    Extent(pictures=8, left_out=frozenset({'dear'}))
    """
    if budget is None or pictures * costs.pair() <= budget:
        return Extent(pictures)
    left_out: frozenset[str] = frozenset()
    for name, cost in sorted(costs.maps.items(), key=lambda item: -item[1]):
        spared = name == next(iter(costs.maps)) or len(costs.maps) - len(left_out) <= 2
        if cost < costs.answers or spared or pictures * costs.pair(left_out) <= budget:
            continue
        left_out |= {name}
    enough = int(budget // costs.pair(left_out))
    if enough < least:
        needed = least * costs.pair(left_out)
        raise InputError(
            f"a budget of {budget:g} {costs.unit} is not enough: {2 * least} pictures, the fewest "
            f"that can be judged, need about {needed:.0f}.",
            argument=costs.unit,
            got=f"{budget:g}",
            expected=f"at least {needed:.0f}",
            remedy="Raise it, name fewer candidates, or ask for fewer unions (sets).",
        )
    return Extent(min(pictures, enough), left_out)
