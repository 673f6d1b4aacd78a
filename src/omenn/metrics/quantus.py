"""Quantus' metrics by name, with corrections for version 0.6.

NOTE [what is put right]
Maps reach Quantus with their channels summed, and are normalised only if that is asked for, each by
itself instead of all by the largest value of the batch. Areas are computed without ``numpy.trapz``,
which newer numpy lacks. Maps that are negative or the same everywhere are let through; one without
a rank correlation leaves that of others alone. ROAD and IROF get pictures with channels in a form
that they take, and ROAD, whose accuracy is of a batch, one picture at a time. The mean over
randomised layers leaves out the original model. Smooth MPRT uses the given maps and not captum's.
Completeness has a tolerance. The random state of numpy, torch and Python is as before.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from omenn.check import wrong
from omenn.errors import InputError, MissingExtra, ModelError, OmennError, reason, unknown
from omenn.metrics import faithfulness
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import checked_images, checked_targets, constant_maps, logits_of
from omenn.metrics.metric_registry import QUANTUS
from omenn.metrics.randomisation import Make
from omenn.metrics.ranking import pearson
from omenn.metrics.score import Score
from omenn.metrics.similarity import by_largest, sorted_ranks

_NAMES = """
    FaithfulnessCorrelation+ FaithfulnessEstimate+ MonotonicityCorrelation+ Monotonicity+
    PixelFlipping- RegionPerturbation- Selectivity- SensitivityN+ IROF+ ROAD- Infidelity-
    Sufficiency+ LocalLipschitzEstimate- MaxSensitivity- AvgSensitivity- Continuity- Consistency-
    RelativeInputStability- RelativeOutputStability- RelativeRepresentationStability-
    PointingGame+ TopKIntersection+ RelevanceMassAccuracy+ RelevanceRankAccuracy+
    AttributionLocalisation+ AUC+ Sparseness+ Complexity- EffectiveComplexity- MPRT-
    EfficientMPRT+ SmoothMPRT- RandomLogit- Completeness+ NonSensitivity-
"""
METRICS = {word[:-1]: word[-1] == "+" for word in _NAMES.split()}
"""The metrics that can be asked for, by the names of Quantus' classes → whether more is better."""

NOT_OFFERED: Mapping[str, str] = MappingProxyType(
    {
        "Focus": "it needs mosaics; use omenn's grid pointing game",
        "InputInvariance": "it shifts the bias of the second module that a model lists, whatever "
        "that is",
    }
)
MASKED = (
    "PointingGame", "TopKIntersection", "RelevanceMassAccuracy", "RelevanceRankAccuracy",
    "AttributionLocalisation", "AUC",
)  # fmt: skip
RANDOMISED = ("MPRT", "EfficientMPRT", "SmoothMPRT")
OWN = {"normalise": False, "return_aggregate": False, "disable_warnings": True}
NO_NUMBER = "left out: Quantus gives no number"
_lock = threading.Lock()  # Quantus uses numpy's global random state


def quantus_metric(
    name: str,
    model: nn.Module | Callable[..., Any],
    images: Tensor,
    targets: int | Tensor,
    explain: Explainer,
    *,
    make: Make | None = None,
    masks: Tensor | None = None,
    softmax: bool | None = None,
    chunk: int = 64,
    seed: int = 0,
    **options: Any,
) -> Score:
    """A metric of Quantus on the maps of an explainer; see NOTE [what is put right].

    The score has one number an image, with two exceptions: of a curve (pixel flipping, region
    perturbation, selectivity) it is the mean height, and SensitivityN has one number a step over
    all images. Values that are not finite are left out, and counted.

    Args:
        name: of :data:`METRICS`; case, blanks and dashes do not matter.
        model: images → logits, in evaluation mode. Quantus computes in float32.
        make: a model → its explainer, for the metrics that randomise parameters.
        masks: (B, H, W), true on the object, for the metrics of localisation.
        softmax: whether Quantus looks at probabilities; as the metric has it by default.
        seed: of every random number that Quantus draws.
        options: of the metric's class. ``Completeness`` is our own, and has those of
            :func:`~omenn.metrics.faithfulness.completeness`.

    Raises:
        MissingExtra: quantus is not installed.
        InputError: an unknown metric or option, what a metric needs and was not given, or what
            Quantus refuses.
        ModelError: a model in training mode.

    Source: Hedström et al. 2023, JMLR 24(34); https://github.com/understandable-machine-intelligence-lab/Quantus
    """
    known = known_name(name)
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    if isinstance(model, nn.Module) and model.training:
        raise ModelError(
            "the model is in training mode.",
            argument="model",
            remedy="Call model.eval() before it is judged.",
        )
    if known == "Completeness":
        maps = explain(images, targets)
        return faithfulness.completeness(model, images, targets, maps, **options)
    _check_needs(known, images, make, masks)
    given: Any = {"make": make, "masks": masks, "softmax": softmax, "chunk": chunk}
    call = _Call(known, model, images, targets, explain, **given)
    with _lock, _contained(package_for(known), seed, call):
        try:
            found = call.result(dict(options))
        except OmennError:
            raise
        except Exception as error:
            raise InputError(
                f"Quantus cannot compute {known} here: {reason(error)}.",
                argument="metric",
                got=known,
                remedy="Check the options and the size of the pictures.",
            ) from error
    return call.score(found)


def _check_needs(known: str, images: Tensor, make: Make | None, masks: Tensor | None) -> None:
    """Raises InputError where a metric lacks what it needs."""
    if known in RANDOMISED and make is None:
        raise InputError(
            f"{known} explains models with other parameters.",
            argument="make",
            remedy="Give make=, a function from a model to its explainer.",
        )
    if known in MASKED and (masks is None or masks.shape != (len(images), *images.shape[2:])):
        got = "none" if masks is None else tuple(masks.shape)
        raise InputError(
            f"{known} needs masks of the objects, (B, H, W) = {(len(images), *images.shape[2:])}, "
            f"got {got}.",
            argument="masks",
            got=str(got),
        )


class _Logits(nn.Module):
    """The model as Quantus calls it: float32 in, on the CPU.

    The last module that it lists is no softmax: else Quantus takes one, of attention perhaps, for
    the model's end and removes it.
    """

    def __init__(self, model: Callable[..., Any], like: Tensor) -> None:
        super().__init__()
        self.model, self.device, self.dtype = model, like.device, like.dtype
        self.end = nn.Identity()
        self.training = self.end.training = False  # and not .eval(), which goes down to the model

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.device, self.dtype)
        return self.end(logits_of(self.model, x, max(1, len(x))).float())


class _Call:
    """One metric with its arguments as Quantus takes them: numpy arrays, float32."""

    def __init__(
        self,
        name: str,
        model: Callable[..., Any],
        images: Tensor,
        targets: Tensor,
        explain: Explainer,
        *,
        make: Make | None,
        masks: Tensor | None,
        softmax: bool | None,
        chunk: int,
    ) -> None:
        self.name, self.make, self.own, self.like = name, make, explain, images
        # it hangs hooks on the model, and leaves them there after an error
        hooked = name == "RelativeRepresentationStability"
        self.model = _Logits(copy.deepcopy(model) if hooked else model, images)
        self.maps = faithfulness.summed_maps(explain(images, targets), images)
        self.x = images.cpu().float().numpy().copy()
        self.y = targets.cpu().numpy().copy()
        self.a = self.maps.cpu().numpy()[:, None].copy()
        self.masks = None if masks is None else masks.cpu().numpy().astype(bool)[:, None]
        self.given = {} if softmax is None else {"softmax": softmax}
        # IROF fills in the mean of the batch
        self.chunk = {"SensitivityN": len(images), "IROF": 1}.get(name, chunk)

    def explain(self, model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        """What Quantus calls for maps: (B, 1, H, W)."""
        x = torch.as_tensor(np.asarray(inputs)).to(self.like)
        y = torch.as_tensor(np.asarray(targets)).to(self.like.device).long()
        own = getattr(model, "model", model) is self.model.model
        explain = self.own if own or self.make is None else self.make(model.model)
        return faithfulness.summed_maps(explain(x, y), x).cpu().numpy()[:, None].copy()

    def result(self, options: dict[str, Any]) -> Any:
        """What the metric returns."""
        package = package_for(self.name)
        kind = getattr(package, self.name)
        known = declared_options(self.name)
        for option in options:
            if option not in known:
                raise unknown(f"option of {self.name}", option, known)
        if self.name == "NonSensitivity" and options.get("features_in_step", 1) != 1:
            raise wrong("features_in_step", options["features_in_step"], "1 for NonSensitivity")
        if self.name == "RandomLogit" and "num_classes" not in options:
            options["num_classes"] = logits_of(self.model, self.like[:1]).shape[1]
        if options.get("normalise") and "normalise_func" not in options:
            options["normalise_func"] = _each_by_largest
        options = {**{k: v for k, v in OWN.items() if k in known}, **options}
        if self.name == "ROAD":
            return self._road(kind, options)
        if self.name == "IROF" and "perturb_func" not in options:
            options["perturb_func"] = _spread(package)
        if self.name in ("MPRT", "SmoothMPRT", "MonotonicityCorrelation"):
            options = {"similarity_func": _rank_correlation, **options}
        early = self.name not in (*RANDOMISED, "Continuity")
        return self._call(kind(**options), self.a if early else None, slice(None))

    def _call(self, metric: Any, maps: np.ndarray | None, rows: slice) -> Any:
        return metric(
            model=self.model,
            x_batch=self.x[rows].copy(),
            y_batch=self.y[rows].copy(),
            a_batch=None if maps is None else maps[rows].copy(),
            s_batch=None if self.masks is None else self.masks[rows].copy(),
            explain_func=self.explain,
            channel_first=True,
            batch_size=self.chunk,
            **self.given,
        )

    def _road(self, kind: Any, options: dict[str, Any]) -> list[float]:
        """Image by image, and pixel by pixel: the map as the first of the channels, which no value
        of the others reaches, so that the first H·W features in order are the pixels."""
        pixels = self.a[0].size
        maps = np.abs(self.a) if options.pop("abs", False) else self.a
        if options.pop("normalise"):
            maps = options.pop("normalise_func")(maps)
        whole = np.repeat(maps, self.x.shape[1], 1)
        whole[:, 1:] = maps.min() - 1
        shares = [p for p in range(1, 100, 2) if int(pixels * p / 100)]
        options = {"percentages": shares, **options, "normalise": False}
        found = []
        for k in range(len(self.x)):
            metric = kind(**options)
            metric.a_size = pixels
            steps = self._call(metric, whole, slice(k, k + 1))
            found.append(float(np.mean(list(steps.values()))))
        return found

    def score(self, found: Any) -> Score:
        """Numbers, curves or layers → one number an image."""
        if isinstance(found, dict):
            found = np.mean([v for layer, v in found.items() if layer != "original"], axis=0)
        values = torch.as_tensor(np.asarray(found, dtype=np.float64))
        if values.ndim == 2 and values.shape[1] > 1:
            values = torch.trapezoid(values, dim=1) / (values.shape[1] - 1)
        if values.ndim != 1 or (len(values) != len(self.x) and self.name != "SensitivityN"):
            raise InputError(
                f"{self.name} gave numbers of the form {tuple(values.shape)} for {len(self.x)} "
                "images with these options.",
                argument="options",
                remedy="Leave out those that change what is returned.",
            )
        bad = ~torch.isfinite(values)
        constant = int(constant_maps(self.maps).sum())
        counted = {"constant maps": constant, NO_NUMBER: int(bad.sum())}
        values = torch.where(bad, torch.nan, values)
        return Score(f"quantus {self.name}", values, counted, higher=METRICS[self.name])


@contextmanager
def _contained(package: Any, seed: int, call: _Call) -> Iterator[None]:
    """Seeds; and in Quantus' own modules, for the time of a call, what NOTE [what is put right]
    says."""
    utils, asserts, torch_model = (
        importlib.import_module(f"quantus.helpers.{name}")
        for name in ("utils", "asserts", "model.pytorch_model")
    )
    before = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(patch.object(utils, "calculate_auc", _area))
        stack.enter_context(patch.object(asserts, "assert_attributions", lambda **_: None))
        stack.enter_context(patch.object(package, "explain", call.explain))
        warnings.simplefilter("ignore")
        np.random.seed(seed)
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])
            for cached in vars(torch_model.PyTorchModel).values():
                if hasattr(cached, "cache_clear"):
                    cached.cache_clear()  # else every model stays in memory


def _area(values: Any, dx: float = 1, batched: bool = False) -> Any:
    """Below curves, which lie along the last dimension, by trapezoids ``dx`` wide."""
    y = np.asarray(values, dtype=np.float64)
    return ((y[..., 1:] + y[..., :-1]) / 2 * dx).sum(-1)


def _spread(package: Any) -> Callable[..., np.ndarray]:
    """Quantus' replacement by mask, where one mask is for all channels."""

    def replace(arr: np.ndarray, mask: np.ndarray, **options: Any) -> np.ndarray:
        whole = np.broadcast_to(mask, arr.shape)
        return package.baseline_replacement_by_mask(arr=arr, mask=whole, **options)

    return replace


def _rank_correlation(a: Any, b: Any, batched: bool = False) -> np.ndarray:
    """Row by row: scipy gives no number for all of them where one is constant."""
    rows = (torch.as_tensor(np.atleast_2d(np.asarray(t, dtype=np.float64))) for t in (a, b))
    return pearson(*(sorted_ranks(each) for each in rows)).numpy()


def _each_by_largest(a: np.ndarray) -> np.ndarray:
    flat = torch.from_numpy(np.ascontiguousarray(a)).flatten(1)[:, None]
    return by_largest(flat).view(a.shape).numpy()


def known_name(name: str) -> str:
    """The name of the class; case, blanks and dashes do not matter.

    Raises:
        InputError: there is none, or it is not offered.
    """
    plain = {_letters(each): each for each in (*METRICS, *NOT_OFFERED)}
    found = plain.get(_letters(str(name)))
    if found is None:
        raise unknown("metric of Quantus", str(name), METRICS)
    if found in NOT_OFFERED:
        raise InputError(
            f"metric '{QUANTUS}{name}' is not offered: {NOT_OFFERED[found]}.",
            argument="metric",
            got=name,
        )
    return found


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def package_for(name: str) -> Any:
    """Quantus.

    Raises:
        MissingExtra: it, or what it needs, is not installed.
    """
    from omenn.models.torchvision_remedy import prepare

    prepare()  # it imports torchvision where that is installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("quantus")
    except ImportError:
        raise MissingExtra("quantus", "bench", f"the metric '{QUANTUS}{name}'") from None


def declared_options(name: str) -> dict[str, Any]:
    """Option → default of a class of Quantus."""
    declared = inspect.signature(getattr(package_for(name), name).__init__).parameters
    return {k: p.default for k, p in declared.items() if k not in ("self", "kwargs")}
