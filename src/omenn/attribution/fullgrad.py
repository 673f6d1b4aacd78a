"""FullGrad: the gradient completed by what every bias adds; LibraGrad: of the frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.attribution.ordinary_gradient import OrdinaryRun, OrdinaryTracer
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import choose, flag
from omenn.engine.backward import Gradients
from omenn.engine.explain import PRODUCTS
from omenn.engine.inputs import Inputs
from omenn.engine.location import Place, full
from omenn.engine.location.constants import Location
from omenn.engine.run import FrozenRun
from omenn.engine.trace.autograd_nodes import Constant
from omenn.engine.trace.call import Call, Mark
from omenn.engine.trace.tracer import Tracer
from omenn.explanation import Explanation

PSI = ("none", "published")


@attribution(
    "fullgrad",
    promise="approximate",
    summary="x ⊙ ∇f and b ⊙ ∇_b f of every layer, mapped to the input",
    source="arXiv 1905.00780",
)
def fullgrad(
    question: Question,
    *,
    psi: str = "none",
    published: bool = False,
) -> Explanation:
    """Full gradients: f(x) = ∇f·x + Σ_l ⟨∇_{b_l} f, b_l⟩ with the ordinary gradient.

    The identity holds where the network is piecewise linear (ReLU, pooling, batch norm in
    evaluation with the bias β − γm/σ, clipping); elsewhere the residual says what is missing.

    Args:
        psi: ``"none"``: the terms with their signs. A layer's map is at the layer's resolution;
            each of its cells is spread evenly over the locations of the input that it covers, which
            keeps the sum, and what has no place over all of them. ``"published"``:
            ψ(x ⊙ ∇f) + Σ_l Σ_c ψ(b_l ⊙ ∇_{b_l} f), ψ being the absolute value, rescaled to [0, 1]
            over all elements of a layer and sample, and bilinear upsampling with aligned corners.
            It has no sign and no sum, and leaves out what has no place (class token, layers behind
            global pooling).
        published: the same as ``psi="published"``.
        resample: with ``at=``, see :func:`omenn.engine.explain.explain`.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3, 4, 4), 0, method="fullgrad")
        >>> assert e.exact and e.matrix.shape == (1, 4, 4)

    Source: Srinivas and Fleuret 2019, arXiv 1905.00780.
    """
    if not _is_published(psi, published):
        return question.answered_by(question.ordinary_run(bias="spatial"))
    run = question.ordinary_run(bias="spatial", kind=OrdinaryLayersRun, tracer=OrdinaryLayers)
    return _shown(question, run)


@attribution(
    "libragrad",
    promise="exact",
    summary="FullGrad of the frozen network: norms, attention and gates are constants",
    source="arXiv 2411.16760",
    same_as="omenn",
)
def libragrad(
    question: Question,
    *,
    psi: str = "none",
    published: bool = False,
    products: str = "half",
) -> Explanation:
    """FG-completeness by the frozen network: f(x) = J·x + Σ_l ⟨J_{b_l}, b_l⟩.

    The ordinary gradient misses this on transformers, because a softmax, 1/σ of a norm and a gate
    have derivatives of their own. With these held constant it holds for any network of the engine.
    The terms are those of omenn: with ``psi="none"`` and constants at their locations, J ⊙ x
    is C_w ⊙ X and the maps of the layers add up to C_b, so this is ``method="omenn"`` itself. The
    methods differ in what they show, which here is ``psi="published"``.

    Args:
        psi: ``"none"`` or ``"published"``, see :func:`omenn.attribution.fullgrad.fullgrad`.
        published: the same as ``psi="published"``.
        products, resample: see :func:`omenn.engine.explain.explain`.

    Example:
        >>> import torch, omenn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> assert omenn.explain(layer, x, first, method="libragrad").exact
        >>> shown = omenn.explain(layer, x, first, method="libragrad", psi="published")
        >>> assert shown.matrix.shape == (1, 5) and bool((shown.matrix >= 0).all())

    Source: LibraGrad, CVPR 2025, arXiv 2411.16760.
    """
    choose("products", products, PRODUCTS)
    if _is_published(psi, published):
        options: dict[str, Any] = {"bias": "spatial", "products": products}
        return _shown(question, question.frozen_run(kind=LayersRun, tracer=Layers, **options))
    return question.exact(products=products)


def _is_published(psi: str, published: bool) -> bool:
    choose("psi", psi, PSI)
    flag("published", published)
    return published or psi == "published"


class EachElement(Location):
    """Constants have ones for every element of what they are added to.

    ``maps``: (index of the term, its ones); the gradient there is b_l ⊙ ∇_{b_l} f of the layer.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.maps: list[tuple[int, Tensor]] = []

    def ones_for(self, call: Call, y: Tensor) -> Tensor:
        return self._each(super().ones_for(call, y), y)

    def carry(self, call: Call, y: Tensor, term: Tensor, place: Place | None) -> Tensor:
        ones = self._each(self.share(call, place), y)
        return Constant.apply(y, ones, term)  # type: ignore[return-value]

    def _each(self, ones: Tensor, y: Tensor) -> Tensor:
        each = ones.expand(y.shape)
        self.maps.append((len(self.terms) - 1, each))
        return each


class Layers(Tracer):
    """A tracer that keeps the constants of every layer element by element."""

    locating = EachElement

    def set_mark(self, t: Tensor, mark: Mark) -> None:
        mark.layer = None  # every layer with all of its columns
        super().set_mark(t, mark)


class OrdinaryLayers(Layers, OrdinaryTracer):
    """The same for the ordinary model."""


class LayersRun(FrozenRun):
    """A run from which the maps of all layers are pulled back, behind the ones of the inputs."""

    @property
    def maps(self) -> list[tuple[int, Tensor]]:
        assert isinstance(self.mode.location, EachElement)
        return self.mode.location.maps

    def _leaves(self) -> list[Tensor]:
        return [*super()._leaves(), *(ones for _, ones in self.maps)]

    def layers(self, g: Gradients) -> list[tuple[str, Place, Tensor]]:
        """(module, place, b ⊙ ∇_b f) of every constant term, shaped like what it is added to."""
        terms = self.mode.location.terms
        found = zip(self.maps, g.ones[len(self.inputs.ones) :], strict=True)
        return [(terms[k].name, terms[k].place, values) for (k, _), values in found]


class OrdinaryLayersRun(LayersRun, OrdinaryRun):
    """The same for the ordinary model."""


def _shown(question: Question, run: LayersRun) -> Explanation:
    """Σ_l Σ_c ψ of the input and of every layer, as the papers show it."""
    f, index = question.number(run)
    g = run.pull_back(f, retain=True)  # the ones of the input are gone back to once more
    e, given = run.wrap(f, index, g), run.inputs
    inputs = [
        (place, w * x)
        for (_, _, place), w, x in zip(run.mode.location.homes, g.inputs, given.values, strict=True)
    ]
    layers = [(place, values) for _, place, values in run.layers(g)]
    canvas = Canvas(given, [(p, v.shape) for p, v in (*inputs, *layers)])
    zero = [torch.zeros_like(given.batch_first(u, k)) for k, u in enumerate(given.ones)]
    bias = _summed([zero, *(canvas.brought(*_rescaled(p, v)) for p, v in layers)])
    matrix = _summed([bias, *(canvas.brought(*_rescaled(p, v)) for p, v in inputs)])
    return e.with_matrix(
        run.brought(matrix)[1],
        bias=run.brought(bias)[1],
        processing=("ψ: absolute, rescaled, upsampled; lossy",),
        promise="none",
    )


def _summed(maps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(parts)).sum(0) for parts in zip(*maps, strict=True)]


def _rescaled(place: Place, values: Tensor) -> tuple[Place, Tensor]:
    """|values| from 0 to 1 over what each sample has, summed over channels to the place's cells."""
    size, cells = values.detach().abs(), full(place.cells, values.shape)
    sample = place.grid.sample[cells].expand(size.shape)
    here = place.located().reshape(cells.shape).expand(size.shape)
    least = size.new_full((place.grid.samples + 1,), torch.inf)
    least = least.scatter_reduce(0, sample[here], size[here], "amin")
    most = torch.zeros_like(least).scatter_reduce(0, sample[here], size[here], "amax")
    span = most - least
    span = torch.where(span > 0, span, torch.ones_like(span))
    unit = torch.where(here, (size - least[sample]) / span[sample], torch.zeros_like(size))
    return place.with_cells(cells), unit.sum_to_size(cells.shape)


class Canvas:
    """The locations of the inputs, onto which maps are upsampled: values, and not sums, are kept.

    A feature map (B, C, *size) of one image, and tokens that lie in its cells, are interpolated
    linearly. Of anything else each location takes the mean of the cells that cover it.
    """

    def __init__(self, given: Inputs, found: Sequence[tuple[Place, Sequence[int]]]) -> None:
        self.inputs = given
        self.lattices: dict[int, torch.Size] = {}  # grid → (B, *size) of its first cells
        if (
            len(given.entries) > 1
            or not given.batched
            or given.entries[0].axis
            or given.ones[0].ndim > 4
        ):
            return
        for place, shape in found:
            size = self._lattice(full(place.cells, shape), shape)
            if size is not None and id(place.grid) not in self.lattices:
                first = place.with_cells(full(place.cells, shape).reshape(size))
                if self._upright(first):
                    self.lattices[id(place.grid)] = size

    def _lattice(self, cells: Tensor, shape: Sequence[int]) -> torch.Size | None:
        """(B, *size) if the cells are those of a grid in order, and one dimension is channels."""
        dims = self.inputs.ones[0].ndim
        channel = next((d for d in (1, dims) if cells.ndim > dims and cells.shape[d] == 1), None)
        if cells.ndim != dims + 1 or channel is None or cells.shape[0] != self.inputs.samples:
            return None
        order = torch.arange(cells.numel(), device=cells.device)
        return cells.squeeze(channel).shape if torch.equal(cells.flatten(), order) else None

    def _upright(self, place: Place) -> bool:
        """Whether the axes of the cells are those of the input, in the same order."""
        size = place.cells.shape
        for dim in range(1, len(size)):
            ramp = torch.arange(
                size[dim], device=place.cells.device, dtype=self.inputs.ones[0].dtype
            )
            ramp = ramp.reshape(-1, *[1] * (len(size) - 1 - dim)).expand(size)
            (there,) = self._covering(place, ramp)
            rest = [d for d in range(1, len(size)) if d != dim]
            flat = there if not rest else there.amax(rest) - there.amin(rest)
            if rest and bool((flat > 1e-3).any()):
                return False
        return True

    def brought(self, place: Place, values: Tensor) -> list[Tensor]:
        """Values at the cells of a place, (B, *locations) of every input."""
        size, here = self.lattices.get(id(place.grid)), place.located()
        if size is None or not bool(here.any()) or int(place.cells[here].max()) >= size.numel():
            return self._covering(place, values)
        at, dtype = place.cells[here], values.dtype
        total = values.new_zeros(size.numel()).index_add(0, at, values[here])
        count = values.new_zeros(size.numel()).index_add(0, at, torch.ones_like(values[here]))
        lattice = (total / count.clamp_min(1)).reshape(size).unsqueeze(1)
        mode = ("linear", "bilinear", "trilinear")[lattice.ndim - 3]
        locations = self.inputs.ones[0].shape[1:]
        return [
            F.interpolate(lattice, locations, mode=mode, align_corners=True).squeeze(1).to(dtype)
        ]

    def _covering(self, place: Place, values: Tensor) -> list[Tensor]:
        """The mean of the cells that cover a location, each with its share of it."""
        here = place.located().to(values.dtype)
        total, weight = (self._back(place, part) for part in (values * here, here))
        return [
            self.inputs.batch_first(torch.where(w > 0, t / torch.where(w > 0, w, 1), 0), k)
            for k, (t, w) in enumerate(zip(total, weight, strict=True))
        ]

    def _back(self, place: Place, values: Tensor) -> list[Tensor]:
        ones = self.inputs.ones
        with torch.enable_grad():
            total = (place.ones() * values.reshape(place.cells.shape)).sum()
        found = torch.autograd.grad(total, ones, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(u) if t is None else t for t, u in zip(found, ones, strict=True)]
