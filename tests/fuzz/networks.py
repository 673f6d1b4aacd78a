"""Random small networks: each block in PyTorch as a model writes it, and as a dense affine map.

Blocks map tokens (B, T, D) to tokens of the same shape. Each draws its weights when it is made and
returns two functions: ``run``, what the explained model does, and ``dense``, what must come of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.dense import Dense, chosen, constant, half, joined, leaf

WIDTH = 4  # channels of every token

Run = Callable[[Tensor], Tensor]
Map = Callable[[Dense], Dense]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) / math.sqrt(shape[-1])


def pick(*choices):
    return choices[int(torch.randint(len(choices), ()))]


# --- linear maps ---------------------------------------------------------------------------------


def linear() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH), draw(WIDTH)
    run = pick(
        lambda x: F.linear(x, w, b),
        lambda x: x @ w.T + b,
        lambda x: torch.einsum("btd,ed->bte", x, w) + b,
        lambda x: torch.baddbmm(b, x, w.T.expand(len(x), -1, -1)),
        lambda x: torch.tensordot(x, w, ([2], [1])) + b,
        lambda x: torch.addmm(b, x.reshape(-1, WIDTH), w.T).view_as(x),
        lambda x: torch.vmap(lambda row, s: row @ s, (None, 1), 1)(w, torch.eye(WIDTH).double()).T
        .mul(0).sum() + F.linear(x, w, b),
    )  # fmt: skip
    return run, lambda z: z.linear(lambda v: v @ w.T).plus(b)


def conv_over_time() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH, 3), draw(WIDTH)
    inner = lambda v: F.conv1d(v.mT, w, padding=1).mT  # noqa: E731
    run = pick(
        lambda x: F.conv1d(x.mT, w, b, padding=1).mT,
        lambda x: F.conv2d(x.mT[:, :, None], w[:, :, None], b, padding=(0, 1))[:, :, 0].mT,
        lambda x: F.conv1d(F.pad(x.transpose(1, 2), (1, 1)), w, b).transpose(2, 1),
    )
    return run, lambda z: z.linear(inner).plus(b)


def mixing_of_positions() -> tuple[Run, Map]:
    f = pick(
        lambda v: v.roll(1, 1),
        lambda v: v.flip(1),
        lambda v: v.cumsum(1),
        lambda v: v - v.mean(1, keepdim=True),
        lambda v: v.sum(1, keepdim=True).expand_as(v) / 3,
        lambda v: F.avg_pool1d(v.mT, 3, 1, 1).mT,
        lambda v: torch.cat([v[:, 1:], v[:, :1]], 1),
        lambda v: torch.stack(v.unbind(1)[::-1], 1),
        lambda v: v.reshape(len(v), -1).view(len(v), v.shape[2], -1).mT,
        lambda v: torch.fft.irfft(torch.fft.rfft(v, dim=2) * 0.5, n=WIDTH, dim=2),
        lambda v: torch.view_as_real(
            torch.view_as_complex(v.reshape(*v.shape[:2], 2, 2)) * (0.3 + 0.8j)
        ).flatten(2),
        lambda v: v.repeat_interleave(2, 1)[:, ::2],
        lambda v: v.unfold(1, 1, 1).squeeze(-1) * 2,
        lambda v: v.permute(2, 0, 1).contiguous().movedim(0, -1),
    )
    return f, lambda z: z.linear(f)


def scattered() -> tuple[Run, Map]:
    def index(v: Tensor) -> Tensor:
        return torch.arange(v.shape[1]).flip(0)

    def added(v: Tensor) -> Tensor:
        return torch.zeros_like(v).index_add(1, index(v) // 2, v)

    run = pick(
        added,
        lambda x: torch.zeros_like(x).index_add_(1, index(x) // 2, x),
        lambda x: torch.zeros(x.shape).double().scatter_add(
            1, (index(x) // 2)[None, :, None].expand_as(x), x
        ),
    )  # fmt: skip
    return run, lambda z: z.linear(added)


def affine_norm() -> tuple[Run, Map]:
    mean, scale, gamma, beta = draw(WIDTH), draw(WIDTH).square() + 0.5, draw(WIDTH), draw(WIDTH)
    fused = lambda x: F.batch_norm(x.mT, mean, scale, gamma, beta).mT  # noqa: E731
    plain = lambda x: (x - mean) / torch.sqrt(scale + 1e-5) * gamma + beta  # noqa: E731
    k = gamma / torch.sqrt(scale + 1e-5)
    return pick(fused, plain), lambda z: z.times(k).plus(beta - mean * k)


# --- activations, gates, norms -------------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "relu": (F.relu, torch.relu, lambda x: x.clamp(min=0), lambda x: torch.where(x > 0, x, 0.0)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), nn.LeakyReLU(0.1)),
    "gelu": (F.gelu, nn.GELU()),
    "silu": (F.silu, nn.SiLU(), lambda x: x * torch.sigmoid(x)),
    "tanh": (torch.tanh, lambda x: x.tanh()),
    "sigmoid": (torch.sigmoid, lambda x: x.sigmoid()),
    "softplus": (F.softplus,),
    "abs": (torch.abs, abs),
    "sin": (torch.sin,),
    "exp": (lambda x: torch.exp(x.clamp(max=3)),),
    "hardswish": (F.hardswish,),
    "mish": (F.mish,),
    "square": (torch.square, lambda x: x**2, lambda x: x * x),
}


def activation() -> tuple[Run, Map]:
    forms = pick(*ACTIVATIONS.values())
    return pick(*forms), lambda z: z.pointwise(forms[0])


def in_place_activation() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)
    name, f = pick(("relu_", F.relu), ("tanh_", torch.tanh), ("sigmoid_", torch.sigmoid))

    def run(x: Tensor) -> Tensor:
        y = x @ w
        getattr(y, name)()
        y += x
        return y

    return run, lambda z: z.linear(lambda v: v @ w).pointwise(f) + z


def gate() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH), draw(WIDTH)

    def in_place(x: Tensor) -> Tensor:
        y = x.clone()
        y *= torch.sigmoid(F.linear(x, w, b))
        return y

    run = pick(
        lambda x: x * torch.sigmoid(F.linear(x, w, b)),
        lambda x: torch.mul(torch.sigmoid(x @ w.T + b), x),
        lambda x: F.glu(torch.cat([x, F.linear(x, w, b)], -1)),
        in_place,
    )
    return run, lambda z: z.times(torch.sigmoid(F.linear(z.value, w, b)))


def even_product() -> tuple[Run, Map]:
    v, w = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    run = lambda x: (x @ v) * (x @ w)  # noqa: E731
    return run, lambda z: half(z.linear(lambda t: t @ v), z.linear(lambda t: t @ w))


def norm() -> tuple[Run, Map]:
    gamma, beta, eps = draw(WIDTH), draw(WIDTH), 1e-5

    def by_hand(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * gamma + beta

    def dense(z: Dense) -> Dense:
        centred = z.linear(lambda v: v - v.mean(-1, keepdim=True))
        sigma = (centred.value.square().mean(-1, keepdim=True) + eps).sqrt()
        return centred.times(gamma / sigma).plus(beta)

    def rms(z: Dense) -> Dense:
        return z.times(gamma / (z.value.square().mean(-1, keepdim=True) + eps).sqrt())

    return pick(
        (lambda x: F.layer_norm(x, (WIDTH,), gamma, beta, eps), dense),
        (by_hand, dense),
        (lambda x: F.rms_norm(x, (WIDTH,), gamma, eps), rms),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma, rms),
    )


def quotient() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)
    below = lambda v: (v @ w).square() + 1  # noqa: E731
    return lambda x: x / below(x), lambda z: z.times(1 / below(z.value))


def attention() -> tuple[Run, Map]:
    q, k, v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    causal = pick(False, True)

    def weights(x: Tensor) -> Tensor:
        scores = (x @ q) @ (x @ k).mT / math.sqrt(WIDTH)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        return scores.softmax(-1)

    run = pick(
        lambda x: weights(x) @ (x @ v) + x,
        lambda x: F.scaled_dot_product_attention(x @ q, x @ k, x @ v, is_causal=causal) + x,
        lambda x: torch.einsum("bij,bjd->bid", weights(x), x @ v) + x,
    )

    def dense(z: Dense) -> Dense:
        held = weights(z.value)
        return z.linear(lambda t: held @ (t @ v)) + z

    return run, dense


# --- selection, writing, control flow ------------------------------------------------------------


def selection() -> tuple[Run, Map]:
    def ordered(z: Dense) -> Dense:
        index = z.value.argsort(1)
        return z.linear(lambda v: v.gather(1, index))

    def largest(z: Dense) -> Dense:
        index = z.value.argmax(1, keepdim=True)
        return z.linear(lambda v: v.gather(1, index).expand_as(v)) + z

    return pick(
        (lambda x: x.sort(1).values, ordered),
        (lambda x: torch.gather(x, 1, x.argsort(1)), ordered),
        (lambda x: x.topk(x.shape[1], 1).values.flip(1), ordered),
        (lambda x: x.amax(1, keepdim=True) + x, largest),
        (lambda x: x + x.max(1, keepdim=True).values, largest),
    )


def writing() -> tuple[Run, Map]:
    w, fill = draw(WIDTH, WIDTH), draw(WIDTH)

    def into_constant(x: Tensor) -> Tensor:
        out = fill.expand_as(x).clone()
        out[:, 1:] = (x @ w)[:, :-1]
        return out

    def into_constant_dense(z: Dense) -> Dense:
        rest = z.linear(lambda v: (v @ w)[:, :-1])
        first = constant(fill.expand_as(z.value)[:, :1], len(z.columns) - 1)
        return joined([first, rest], -2)

    def into_clone(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] *= 2
        y[..., 1:3].add_(x[..., :2])
        return y

    def linear_part(v: Tensor) -> Tensor:
        y = v.clone()
        y[:, 0] *= 2
        y[..., 1:3] += v[..., :2]
        return y

    def indexed(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, torch.arange(x.shape[1]).flip(0)] = x
        return y.index_fill(2, torch.tensor([0]), 0.5)

    def indexed_dense(z: Dense) -> Dense:
        keep = torch.ones(WIDTH, dtype=torch.float64)
        keep[0] = 0
        return z.linear(lambda v: v.flip(1) * keep).plus(0.5 * (1 - keep))

    return pick(
        (into_constant, into_constant_dense),
        (into_clone, lambda z: z.linear(linear_part)),
        (indexed, indexed_dense),
    )


def decision() -> tuple[Run, Map]:
    w, v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)

    def run(x: Tensor) -> Tensor:
        return torch.where(x > 0.1, x @ w, x @ v)

    def masked(x: Tensor) -> Tensor:
        y = x @ v
        mask = x > 0.1
        y[mask] = (x @ w)[mask]
        return y

    def dense(z: Dense) -> Dense:
        return chosen(z.value > 0.1, z.linear(lambda t: t @ w), z.linear(lambda t: t @ v))

    return pick(run, masked), dense


def control_flow() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)

    def run(x: Tensor) -> Tensor:
        if bool(torch.isnan(x).any()):
            return x
        for _ in range(int((x.abs() < 100).all()) + 1):
            x = torch.relu(x @ w) + x
        return x

    def dense(z: Dense) -> Dense:
        for _ in range(2):
            z = z.linear(lambda v: v @ w).pointwise(F.relu) + z
        return z

    return run, dense


def inner_derivative() -> tuple[Run, Map]:
    """A derivative of constants inside of the forward pass: a constant coefficient."""
    w = draw(WIDTH).abs() + 0.5
    run = pick(
        lambda x: x * torch.func.grad(lambda v: v.pow(3).sum())(w),
        lambda x: x * torch.autograd.functional.jacobian(lambda v: v.pow(3).sum(), w),
    )
    return run, lambda z: z.times(3 * w.square())


def time_first() -> tuple[Run, Map]:
    """A block that has its batch in the second dimension, as recurrent layers do."""
    w, b = draw(WIDTH, WIDTH), draw(WIDTH)
    run = lambda x: torch.tanh(F.linear(x.transpose(0, 1), w, b)).cumsum(0).transpose(0, 1)  # noqa: E731
    step = lambda z: z.linear(lambda v: v @ w.T).plus(b).pointwise(torch.tanh)  # noqa: E731
    return run, lambda z: step(z).linear(lambda v: v.cumsum(1))


def recurrent() -> tuple[Run, Map]:
    """A vanilla recurrent layer, whose state starts at zero, beside its loop written out."""
    w, u, b = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH)
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True).double().eval()
    for p, value in zip(layer.parameters(), (w, u, b, torch.zeros_like(b)), strict=True):
        p.requires_grad_(False).copy_(value)

    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            h = torch.tanh(F.linear(step, w, b) + h @ u.T)
            out.append(h)
        return torch.stack(out, 1)

    def dense(z: Dense) -> Dense:
        h, out = constant(torch.zeros_like(z.value[:, 0]), len(z.columns) - 1), []
        for t in range(z.value.shape[1]):
            step = z.linear(lambda v, t=t: v[..., t, :] @ w.T).plus(b)
            h = (step + h.linear(lambda v: v @ u.T)).pointwise(torch.tanh)
            out.append(h.linear(lambda v: v.unsqueeze(-2)))
        return joined(out, -2)

    return pick(lambda x: layer(x)[0], loop), dense


# What acts on each position by itself.
POSITIONWISE = (
    linear,
    affine_norm,
    activation,
    in_place_activation,
    gate,
    even_product,
    norm,
    quotient,
    decision,
    control_flow,
    inner_derivative,
)
BLOCKS = (
    *POSITIONWISE,
    conv_over_time,
    mixing_of_positions,
    scattered,
    attention,
    selection,
    writing,
    time_first,
    recurrent,
)


# --- whole networks ------------------------------------------------------------------------------


@dataclass(eq=False)
class Network:
    """A random network of some inputs, as a model and as a dense map; ``names``: its blocks.

    Inputs, all keyword arguments: ``x`` (B, T, D); perhaps ``ids`` (B, T), which are looked up,
    ``row`` (B, D) of further numbers, ``mask`` (B, T) of positions that count, ``lengths`` (B,).
    """

    inputs: dict[str, Tensor]
    blocks: list[tuple[Run, Map]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skip: int | None = None  # the block whose input is added again at the end
    late: bool = False  # ids and row have a branch each, and are added at the end
    padded: bool = False  # positions do not mix, and those that the mask leaves out do not count

    def __post_init__(self) -> None:
        self.table, self.row, self.head = draw(7, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH)
        self.shift = draw(WIDTH)
        self.by_module = bool(torch.rand(()) < 0.5)

    def explained(self) -> dict[str, tuple[int, ...]]:
        """The explained tensors and their shapes; ids are explained at their vectors."""
        shapes = {k: tuple(v.shape) for k, v in self.inputs.items() if v.is_floating_point()}
        if "ids" in self.inputs:
            shapes["ids"] = (*self.inputs["ids"].shape, WIDTH)
        return {k: shapes[k] for k in self.inputs if k in shapes}

    def forward(
        self,
        x: Tensor,
        ids: Tensor | None = None,
        row: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        vectors = None if ids is None else self.looked_up(ids)
        if vectors is not None and not self.late:
            x = x + vectors
        if row is not None and not self.late:
            x = torch.cat([x[:, :1] + (row @ self.row)[:, None], x[:, 1:]], 1)
        kept = x
        for k, (run, _) in enumerate(self.blocks):
            if k == self.skip:
                kept = x
            x = run(x)
        if self.skip is not None:
            x = x + kept
        if mask is not None:
            x = x * mask.to(x.dtype).unsqueeze(-1)
        out = x.sum(1) / (x.shape[1] if lengths is None else lengths[:, None])
        if vectors is not None and self.late:
            out = out + torch.tanh(vectors + self.shift).sum(1)
        if row is not None and self.late:
            out = out + F.gelu(row @ self.row + self.shift)
        return out * self.head

    def looked_up(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table) if self.by_module else self.table[ids]

    def parts(self) -> dict[str, Tensor]:
        """What each input of a network with ``late`` branches adds to the output, (B, D)."""
        own = {k: v for k, v in self.inputs.items() if k in ("x", "mask", "lengths")}
        found = {"x": self.forward(**own)}
        if "ids" in self.inputs:
            vectors = F.embedding(self.inputs["ids"], self.table)
            found["ids"] = torch.tanh(vectors + self.shift).sum(1) * self.head
        if "row" in self.inputs:
            found["row"] = F.gelu(self.inputs["row"] @ self.row + self.shift) * self.head
        return found

    def dense(self) -> Dense:
        """The output (B, D) with one column for each explained number."""
        count = sum(math.prod(shape) for shape in self.explained().values())
        leaves, first = {}, 0
        for key, shape in self.explained().items():
            value = (
                F.embedding(self.inputs["ids"], self.table) if key == "ids" else self.inputs[key]
            )
            leaves[key] = leaf(value, first, count)
            first += math.prod(shape)
        z = leaves["x"]
        if "ids" in leaves and not self.late:
            z = z + leaves["ids"]
        if "row" in leaves and not self.late:
            step = leaves["row"].linear(lambda v: (v @ self.row)[:, None])
            z = joined([z.linear(lambda v: v[:, :1]) + step, z.linear(lambda v: v[:, 1:])], -2)
        kept = z
        for k, (_, run) in enumerate(self.blocks):
            if k == self.skip:
                kept = z
            z = run(z)
        if self.skip is not None:
            z = z + kept
        if "mask" in self.inputs:
            z = z.times(self.inputs["mask"].double().unsqueeze(-1))
        length = self.inputs["lengths"][:, None] if "lengths" in self.inputs else z.value.shape[1]
        z = z.linear(lambda v: v.sum(1) / length)
        if "ids" in leaves and self.late:
            moved = leaves["ids"].plus(self.shift).pointwise(torch.tanh)
            z = z + moved.linear(lambda v: v.sum(1))
        if "row" in leaves and self.late:
            z = z + leaves["row"].linear(lambda v: v @ self.row).plus(self.shift).pointwise(F.gelu)
        return z.times(self.head)


def random_network(seed: int) -> Network:
    """The network of one seed: inputs, one to five blocks, perhaps a skip connection."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        b, t = pick(1, 2, 3), pick(2, 3, 4, 5)
        inputs: dict[str, Tensor] = {"x": torch.randn(b, t, WIDTH, dtype=torch.float64)}
        extra: dict[str, Callable[[], Tensor]] = {
            "ids": lambda: torch.randint(0, 7, (b, t)),
            "row": lambda: torch.randn(b, WIDTH, dtype=torch.float64),
            "mask": lambda: torch.rand(b, t) < 0.7,
            "lengths": lambda: torch.randint(1, 5, (b,)),
        }
        for key, make in extra.items():
            if torch.rand(()) < 0.3:
                inputs[key] = make()
        order = torch.randperm(len(inputs)).tolist()
        inputs = {list(inputs)[k]: list(inputs.values())[k] for k in order}
        network = Network(inputs, late=pick(False, True))
        network.padded = {"mask", "lengths"} <= set(inputs) and not (set(inputs) & {"row"})
        for _ in range(pick(1, 2, 3, 4, 5)):
            block = pick(*(POSITIONWISE if network.padded else BLOCKS))
            network.names.append(block.__name__)
            network.blocks.append(block())
        if torch.rand(()) < 0.4:
            network.skip = int(torch.randint(len(network.blocks), ()))
    return network
