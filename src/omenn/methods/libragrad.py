"""LibraGrad: full gradients of the frozen network, whose sum is right for any architecture."""

from __future__ import annotations

from typing import Any

from omenn.check import choose
from omenn.engine import explain as engine
from omenn.engine.depth import RESAMPLINGS
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.explanation import Explanation
from omenn.methods.fullgrad import PSI, Layers, LayersRun, shown
from omenn.methods.registry import method


@method(
    "libragrad",
    promise="exact",
    summary="FullGrad of the frozen network: norms, attention and gates are constants",
    source="arXiv 2411.16760",
    same_as="omenn",
)
@alone()
def libragrad(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    psi: str = "none",
    published: bool = False,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    products: str = "half",
    channel_dim: int | None = None,
) -> Explanation:
    """FG-completeness by the frozen network: f(x) = J·x + Σ_l ⟨J_{b_l}, b_l⟩.

    The ordinary gradient misses this on transformers, because a softmax, 1/σ of a norm and a gate
    have derivatives of their own. With these held constant it holds for any network of the engine.
    The terms are those of omenn: with ``psi="none"`` and constants brought to their places, J ⊙ x
    is C_w ⊙ X and the maps of the layers add up to C_b, so this is ``method="omenn"`` itself. The
    methods differ in what they show, which here is ``psi="published"``.

    Args:
        psi: ``"none"`` or ``"published"``, see :func:`omenn.methods.fullgrad.fullgrad`.
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
    choose("psi", psi, PSI)
    psi = "published" if published else psi
    choose("products", products, engine.PRODUCTS)
    choose("resample", resample, RESAMPLINGS)
    options: dict[str, Any] = {"at": at, "channel_dim": channel_dim, "resample": resample}
    if psi == "none":
        return engine.explain(model, inputs, target, output=output, products=products, **options)
    run = LayersRun(
        model,
        inputs,
        **options,
        bias="spatial",
        options={"products": products},
        tracer=Layers,
    )
    return shown(run, target, output)
