"""Random small networks, each as a model and as a dense affine map: of tokens, pictures, tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fuzz.dense import Dense, constant, joined, leaf
from fuzz.pictures import PICTURE_BLOCKS
from fuzz.steps import (
    complex_product,
    control_flow,
    decision,
    even_gate,
    gated_recurrent,
    guarded_mean,
    inner_derivative,
    masked_attention,
    recurrent,
    reused,
    selection,
    time_first,
    writing,
    written_gate,
)
from fuzz.tokens import (
    WIDTH,
    Map,
    Run,
    activation,
    affine_norm,
    attention,
    conv_over_time,
    draw,
    even_product,
    gate,
    in_place_activation,
    linear,
    mixing_of_positions,
    multihead,
    norm,
    pick,
    quotient,
    scattered,
)

# What acts on each position by itself.
POSITIONWISE = (
    linear,
    affine_norm,
    activation,
    in_place_activation,
    gate,
    even_gate,
    written_gate,
    even_product,
    complex_product,
    norm,
    quotient,
    decision,
    control_flow,
    inner_derivative,
    reused,
)
BLOCKS = (
    *POSITIONWISE,
    conv_over_time,
    mixing_of_positions,
    scattered,
    attention,
    multihead,
    masked_attention,
    guarded_mean,
    selection,
    writing,
    time_first,
    recurrent,
    gated_recurrent,
)


class Network(ABC):
    """A random network as a model (``forward``) and as a dense map; ``names``: its blocks.

    ``late``: some inputs have a branch each, which is added at the end. ``padded``: positions do
    not mix, and those that the mask leaves out do not count. ``skip``: the block whose input is
    added again at the end.
    """

    def __init__(self, inputs: dict[str, Tensor], kinds: Sequence[Callable[[], tuple[Run, Map]]]):
        order = torch.randperm(len(inputs)).tolist()
        self.inputs = {list(inputs)[k]: list(inputs.values())[k] for k in order}
        self.late, self.padded = pick(False, True), False
        chosen = [pick(*kinds) for _ in range(pick(1, 2, 3, 4, 5))]
        self.names = [make.__name__ for make in chosen]
        self.blocks = [make() for make in chosen]
        self.skip = int(torch.randint(len(chosen), ())) if torch.rand(()) < 0.4 else None
        self.head = draw(WIDTH)

    @abstractmethod
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        """The logits, (B, WIDTH)."""

    @abstractmethod
    def mapped(self, leaves: dict[str, Dense]) -> Dense:
        """The same of dense maps."""

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """What is explained of each input: the floats, the rows of tables, the pixels."""

    def parts(self) -> dict[str, Tensor]:
        """What each input of a network with ``late`` branches adds to the output, (B, WIDTH)."""
        return {}

    def axis(self, key: str) -> int:
        """The dimension of the samples."""
        return 0

    def samples(self, index: Tensor) -> dict[str, Tensor]:
        """The inputs of some samples."""
        return {k: v.index_select(self.axis(k), index) for k, v in self.inputs.items()}

    def blocks_of(self, x: Tensor) -> Tensor:
        kept = x
        for k, (run, _) in enumerate(self.blocks):
            if k == self.skip:
                kept = x
            x = run(x)
        return x if self.skip is None else x + kept

    def blocks_mapped(self, z: Dense) -> Dense:
        kept = z
        for k, (_, run) in enumerate(self.blocks):
            if k == self.skip:
                kept = z
            z = run(z)
        return z if self.skip is None else z + kept

    def dense(self) -> Dense:
        """The output (B, WIDTH) with one column for each explained number."""
        values, first = self.values(), 0
        count = sum(v.numel() for v in values.values())
        leaves = {}
        for key, value in values.items():
            leaves[key] = leaf(value, first, count)
            first += value.numel()
        return self.mapped(leaves)


class Tokens(Network):
    """Of ``x`` (B, T, D) or (T, B, D), and perhaps ``ids`` (B, T) and ``bag`` (B, L), which are
    looked up, ``row`` (B, D), ``mask`` (B, T) of positions that count, ``lengths`` (B,)."""

    def __init__(self) -> None:
        b, t = pick(1, 2, 3), pick(1, 2, 3, 4, 5)
        self.turned = bool(torch.rand(()) < 0.15)
        x = torch.randn(b, t, WIDTH, dtype=torch.float64)
        inputs: dict[str, Tensor] = {"x": x.transpose(0, 1).contiguous() if self.turned else x}
        extra: dict[str, Callable[[], Tensor]] = {
            "ids": lambda: torch.randint(0, 7, (b, t)),
            "bag": lambda: torch.randint(0, 7, (b, 3)),
            "row": lambda: torch.randn(b, WIDTH, dtype=torch.float64),
            "mask": lambda: torch.rand(b, t) < 0.7,
            "lengths": lambda: torch.randint(1, 5, (b,)),
        }
        for key, make in extra.items():
            if torch.rand(()) < 0.3 and not self.turned:
                inputs[key] = make()
        padded = {"mask", "lengths"} <= set(inputs) and not (set(inputs) & {"row", "bag"})
        super().__init__(inputs, POSITIONWISE if padded else BLOCKS)
        self.padded = padded
        self.table, self.row = draw(7, WIDTH), draw(WIDTH, WIDTH)
        self.shift = draw(WIDTH)
        self.by_module = pick(False, True)
        self.bag_mode, self.by_offsets = pick("sum", "mean"), pick(False, True)

    def axis(self, key: str) -> int:
        return 1 if self.turned and key == "x" else 0

    def values(self) -> dict[str, Tensor]:
        found = dict(self.inputs)
        for key in {"ids", "bag"} & set(found):
            found[key] = F.embedding(found[key], self.table)
        return {k: v for k, v in found.items() if v.is_floating_point()}

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        ids, row, bag = (others.get(k) for k in ("ids", "row", "bag"))
        mask, lengths = others.get("mask"), others.get("lengths")
        x = x.transpose(0, 1) if self.turned else x
        vectors = None if ids is None else self.looked_up(ids)
        bagged = None if bag is None else self.bagged(bag)
        if vectors is not None and not self.late:
            x = x + vectors
        for added in (None if row is None else row @ self.row, bagged):
            if added is not None and not self.late:
                x = torch.cat([x[:, :1] + added[:, None], x[:, 1:]], 1)
        x = self.blocks_of(x)
        if mask is not None:
            x = x * mask.to(x.dtype).unsqueeze(-1)
        out = x.sum(1) / (x.shape[1] if lengths is None else lengths[:, None])
        if self.late:
            if vectors is not None:
                out = out + torch.tanh(vectors + self.shift).sum(1)
            if row is not None:
                out = out + F.gelu(row @ self.row + self.shift)
            if bagged is not None:
                out = out + bagged
        return out * self.head

    def looked_up(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table) if self.by_module else self.table[ids]

    def bagged(self, bag: Tensor) -> Tensor:
        if not self.by_offsets:
            return F.embedding_bag(bag, self.table, mode=self.bag_mode)
        offsets = torch.arange(len(bag)) * bag.shape[1]
        return F.embedding_bag(bag.reshape(-1), self.table, offsets, mode=self.bag_mode)

    def parts(self) -> dict[str, Tensor]:
        own = {k: v for k, v in self.inputs.items() if k in ("x", "mask", "lengths")}
        found = {"x": self.forward(**own)}
        if "ids" in self.inputs:
            vectors = F.embedding(self.inputs["ids"], self.table)
            found["ids"] = torch.tanh(vectors + self.shift).sum(1) * self.head
        if "row" in self.inputs:
            found["row"] = F.gelu(self.inputs["row"] @ self.row + self.shift) * self.head
        if "bag" in self.inputs:
            found["bag"] = self.bagged(self.inputs["bag"]) * self.head
        return found

    def mapped(self, leaves: dict[str, Dense]) -> Dense:
        z = leaves["x"].linear(lambda v: v.transpose(0, 1)) if self.turned else leaves["x"]
        ids, row, bag = (leaves.get(k) for k in ("ids", "row", "bag"))
        if bag is not None:
            bag = bag.linear(lambda v: v.sum(1) if self.bag_mode == "sum" else v.mean(1))
        if ids is not None and not self.late:
            z = z + ids
        for step in (None if row is None else row.linear(lambda v: v @ self.row), bag):
            if step is not None and not self.late:
                first = z.linear(lambda v: v[:, :1]) + step.linear(lambda v: v[:, None])
                z = joined([first, z.linear(lambda v: v[:, 1:])], -2)
        z = self.blocks_mapped(z)
        if "mask" in self.inputs:
            z = z.times(self.inputs["mask"].double().unsqueeze(-1))
        length = self.inputs["lengths"][:, None] if "lengths" in self.inputs else z.value.shape[1]
        z = z.linear(lambda v: v.sum(1) / length)
        if self.late:
            if ids is not None:
                z = z + ids.plus(self.shift).pointwise(torch.tanh).linear(lambda v: v.sum(1))
            if row is not None:
                moved = row.linear(lambda v: v @ self.row).plus(self.shift)
                z = z + moved.pointwise(F.gelu)
            z = z if bag is None else z + bag
        return z.times(self.head)


class Pictures(Network):
    """Of ``x`` (B, 3, 4, 4), floats or 8-bit, and perhaps ``row`` (B, D) of further numbers."""

    def __init__(self) -> None:
        b = pick(1, 2)
        bytes_ = bool(torch.rand(()) < 0.3)
        x = torch.rand(b, 3, 4, 4, dtype=torch.float64)
        inputs = {"x": (x * 255).to(torch.uint8) if bytes_ else x * 2 - 1}
        if torch.rand(()) < 0.3:
            inputs["row"] = torch.randn(b, WIDTH, dtype=torch.float64)
        super().__init__(inputs, PICTURE_BLOCKS)
        self.stem, self.bias = draw(WIDTH, 3, 3, 3) / 3, draw(WIDTH)
        self.row, self.last = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH * 16)
        self.flat = pick(False, True)
        self.scale = 255.0 if bytes_ else 1.0

    def values(self) -> dict[str, Tensor]:
        return {k: v.double() for k, v in self.inputs.items()}

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        x = F.conv2d(x.double() / self.scale, self.stem, self.bias, padding=1)
        row = others.get("row")
        if row is not None and not self.late:
            x = x + (row @ self.row)[:, :, None, None]
        x = self.blocks_of(x)
        out = F.linear(x.flatten(1), self.last) if self.flat else x.mean((2, 3))
        if row is not None and self.late:
            out = out + row @ self.row
        return out * self.head

    def parts(self) -> dict[str, Tensor]:
        found = {"x": self.forward(self.inputs["x"])}
        if "row" in self.inputs:
            found["row"] = self.inputs["row"] @ self.row * self.head
        return found

    def mapped(self, leaves: dict[str, Dense]) -> Dense:
        z = leaves["x"].linear(lambda v: F.conv2d(v / self.scale, self.stem, padding=1))
        z = z.plus(self.bias[:, None, None])
        row = leaves["row"].linear(lambda v: v @ self.row) if "row" in leaves else None
        if row is not None and not self.late:
            z = z + row.linear(lambda v: v[:, :, None, None])
        z = self.blocks_mapped(z)
        z = z.linear(lambda v: v.flatten(1) @ self.last.T if self.flat else v.mean((2, 3)))
        return (z if row is None or not self.late else z + row).times(self.head)


class Table(Network):
    """Of ``x`` (B, 1 + WIDTH), whose first column is a category: its row is a constant."""

    def __init__(self) -> None:
        b = pick(1, 2, 3)
        numbers = torch.randn(b, WIDTH, dtype=torch.float64)
        category = torch.randint(0, 7, (b, 1)).double()
        super().__init__({"x": torch.cat([category, numbers], 1)}, POSITIONWISE)
        self.table, self.mix = draw(7, WIDTH), draw(2 * WIDTH, WIDTH)
        self.coded = pick(False, True)

    def values(self) -> dict[str, Tensor]:
        return dict(self.inputs)

    def vectors(self, x: Tensor) -> Tensor:
        codes = x[:, 0].long()
        return F.one_hot(codes, 7).double() @ self.table if self.coded else self.table[codes]

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        vectors = self.vectors(x)
        h = x[:, 1:] if self.late else torch.cat([vectors, x[:, 1:]], 1) @ self.mix
        out = self.blocks_of(h[:, None])[:, 0]
        return (out + vectors if self.late else out) * self.head

    def mapped(self, leaves: dict[str, Dense]) -> Dense:
        x, count = leaves["x"], len(leaves["x"].columns) - 1
        vectors, z = constant(self.vectors(x.value), count), x.linear(lambda v: v[:, 1:])
        if not self.late:
            z = joined([vectors, z], -1).linear(lambda v: v @ self.mix)
        z = self.blocks_mapped(z.linear(lambda v: v[:, None])).linear(lambda v: v[:, 0])
        return (z + vectors if self.late else z).times(self.head)


def random_network(seed: int) -> Network:
    """The network of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pick(Tokens, Tokens, Tokens, Pictures, Table)()


__all__ = ["WIDTH", "Network", "Pictures", "Table", "Tokens", "random_network"]
