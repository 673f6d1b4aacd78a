"""From a name such as ``timm:resnet18`` to a model that is ready to be explained.

| SPEC                    | the model                                                            |
|-------------------------|----------------------------------------------------------------------|
| ``birds-resnet``        | trained, bundled with omenn (also ``birds-vit``, ``birds-convnet``   |
|                         | and ``birds-xconvnet``, which has no biases)                         |
| ``efficientnet-lite0``  | trained on ImageNet; its weights are a package of the extra ``zoo``  |
| ``timm:NAME``           | ``timm.create_model(NAME)``                                          |
| ``torchvision:NAME``    | ``torchvision.models.get_model(NAME)``                               |
| ``file.py:function``    | the module that ``function()`` returns; this runs the file           |

Nothing is ever downloaded: models of timm and torchvision have random weights unless a file is
named. The module that ``function()`` returns may have four attributes: ``preprocess`` (a
dictionary such as ``{"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}``), ``classes``
(a list of names), ``example_inputs`` (a tensor, tuple or dictionary for ``omenn certify``) and
``modality`` (for inputs that are not pictures, see ``omenn.modalities``).
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omenn.errors import MissingExtra, ModelError, did_you_mean, reason
from omenn.modalities import Modality
from omenn.modalities.image import preprocessing
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.models import pretrained, user_files
from omenn.models.checkpoints import load_weights
from omenn.models.randomness import leave_no_layer_trivial, seeded
from omenn.models.torchvision_remedy import prepare

if TYPE_CHECKING:
    from torch import nn

_KINDS = ("timm", "torchvision")
_ASSUMED_NAMES = (
    "The names of the classes are those of ImageNet-1k: the model has 1,000 outputs and no names."
)


@dataclass(frozen=True)
class Source:
    """A model in evaluation mode, with all that is needed to use it and to read its outputs.

    Attributes:
        spec: the name that it was loaded by.
        model: the module, in evaluation mode, on the requested device.
        preprocessing: from a picture to its input, and back.
        classes: the name of every output, or None if they are not recorded.
        weights: where the weights come from, in words.
        trained: False for random weights, None if unknown.
        example_inputs: inputs for ``certify`` if the model takes no pictures, or None.
        file: the user's file that built it, or None.
        output: the key or position of the logits in a structured output, or None.
        names: where the names of the classes come from, if they had to be assumed.
    """

    spec: str
    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    weights: str
    trained: bool | None
    example_inputs: Any = None
    file: Path | None = None
    output: str | int | None = None
    names: str = ""

    @property
    def modality(self) -> Modality:
        """How inputs of this model are made and how its explanations are shown.

        It is the model's attribute ``modality`` if it has one (see NOTE [modality]), else pictures.
        """
        from omenn.modalities.image.pictures import Pictures

        declared: Any = getattr(self.model, "modality", None)
        return declared if hasattr(declared, "from_user") else Pictures(self.preprocessing)

    @property
    def named_output(self) -> dict[str, str | int]:
        """The argument ``output`` of ``explain``, if the model has one."""
        return {} if self.output is None else {"output": self.output}

    @property
    def warning(self) -> str:
        """What a reader must know first: untrained weights, assumed preprocessing or names."""
        weights = f"{self.weights[:1].upper()}{self.weights[1:]}."
        said = ["" if self.trained else weights, self.modality.assumption, self.names]
        return " ".join(filter(None, said))

    def with_outputs(self, count: int) -> Source:
        """With the names of ImageNet-1k, and a word about it, if 1,000 outputs have no names."""
        if self.classes is not None or count != pretrained.IMAGENET:
            return self
        classes = pretrained.imagenet_classes()
        return self if classes is None else replace(self, classes=classes, names=_ASSUMED_NAMES)

    def class_name(self, index: int) -> str:
        """The name of output ``index``, or ``class 17`` if it has none."""
        if self.classes is not None and 0 <= index < len(self.classes):
            return self.classes[index]
        return f"class {index}"


def load(
    spec: str,
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    output: str | int | None = None,
) -> Source:
    """Build the model that ``spec`` names (see the table above), in evaluation mode.

    Random weights are drawn from ``seed`` without changing the global generators. Biases, norms and
    zero-initialised parameters are drawn too, so that no layer of an untrained model is trivial.

    Raises:
        ModelError: an unknown name, a device that does not exist, a function that fails.
        MissingExtra: the library of the model is not installed.
        WeightsError: ``weights`` do not fit, or the file could run code.
    """
    check_device(device)
    source = _builder(spec)(spec, seed)
    if weights is not None:
        load_weights(source.model, weights)
        source = replace(source, weights=f"weights of {Path(weights).name}", trained=True)
    source.model.eval().to(device)
    return replace(source, output=output)


def check_device(device: str) -> None:
    """Raises ``ModelError`` unless torch can place a tensor on ``device`` (cpu, cuda, cuda:1…)."""
    import torch

    try:
        torch.zeros(1, device=torch.device(device)).item()
    except Exception as error:  # torch raises AssertionError, RuntimeError and more
        here = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        raise ModelError(
            f"the device '{device}' cannot be used here.",
            argument="device",
            got=device,
            expected=", ".join(here),
            remedy=f"Available: {', '.join(here)}.",
        ) from error


def _builder(spec: str) -> Callable[[str, int], Source]:
    from omenn.models import bundled

    kind, colon, name = spec.partition(":")
    if spec in bundled.names():
        return _from_bundled
    if spec in pretrained.names():
        return _from_package
    if ".py:" in spec or spec.endswith(".py"):
        return _from_file
    if colon and name and kind == "timm":
        return _from_timm
    if colon and name and kind == "torchvision":
        return _from_torchvision
    single = [*bundled.names(), *pretrained.names()]
    forms = ", ".join([*single, "timm:NAME", "torchvision:NAME or file.py:function"])
    if colon:
        near = difflib.get_close_matches(kind, _KINDS, n=1)
        near = [f"{known}:{name or 'NAME'}" for known in near]
    else:
        near = difflib.get_close_matches(spec, single, n=1, cutoff=0.5)
    raise ModelError(
        f"unknown model '{spec}':",
        argument="model",
        got=spec,
        expected=forms,
        remedy=f"did you mean '{near[0]}'?" if near else f"write {forms}.",
    )


def _from_bundled(spec: str, seed: int) -> Source:
    from omenn.models import bundled

    with seeded(seed):  # layers draw random weights first
        model = bundled.load(spec)
    settings = Preprocessing(
        size=(bundled.SIZE, bundled.SIZE), mean=bundled.MEAN, std=bundled.STD, source="its card"
    )
    right = bundled.card(spec)["result"]["test_top1"]
    words = f"trained on generated birds, {100 * right:.1f} % of the test scenes right"
    return Source(spec, model, settings, bundled.CLASS_NAMES, words, trained=True)


def _from_package(spec: str, seed: int) -> Source:
    model, classes = pretrained.load(spec), pretrained.imagenet_classes()
    settings = pretrained.known(spec).preprocessing()
    return Source(spec, model, settings, classes, "trained on ImageNet-1k", trained=True)


def _from_timm(spec: str, seed: int) -> Source:
    timm = _import("timm", spec)
    name = spec.partition(":")[2]
    known = timm.list_models()
    if name.partition(".")[0] not in known:  # also refuses hf-hub:…, which would download
        raise _unknown_name(spec, name, known)
    model = _random(lambda: timm.create_model(name, pretrained=False), spec, seed)
    return _untrained(spec, model, seed, timm_preprocessing(model, spec), _timm_classes(model))


def timm_preprocessing(model: nn.Module, spec: str) -> Preprocessing:
    """The preprocessing that the configuration of a timm model declares."""
    from timm.data.config import resolve_model_data_config

    return preprocessing.from_timm(resolve_model_data_config(model), f"configuration of {spec}")


def _timm_classes(model: Any) -> tuple[str, ...] | None:
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    information = ImageNetInfo(subset)
    count = information.num_classes()
    return tuple(information.index_to_description(index) for index in range(count))


def _from_torchvision(spec: str, seed: int) -> Source:
    _import("torchvision", spec)
    from torchvision import models

    name = spec.partition(":")[2]
    known = models.list_models(module=models)  # the classifiers; others would load a backbone
    if name not in known:
        raise _unknown_name(spec, name, known)
    options = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    model = _random(lambda: models.get_model(name, weights=None, **options), spec, seed)
    entry = models.get_model_weights(name)
    chosen = getattr(entry, "DEFAULT", None)
    if chosen is None:
        return _untrained(spec, model, seed, Preprocessing(), None)
    settings = preprocessing.from_torchvision(chosen.transforms(), f"{chosen} transforms")
    return _untrained(spec, model, seed, settings, tuple(chosen.meta["categories"]))


def _untrained(
    spec: str,
    model: nn.Module,
    seed: int,
    settings: Preprocessing,
    classes: tuple[str, ...] | None,
) -> Source:
    words = f"random weights, seed {seed}: the model is not trained"
    return Source(spec, model, settings, classes, words, trained=False)


def _random(build: Callable[[], nn.Module], spec: str, seed: int) -> nn.Module:
    with seeded(seed):
        try:
            model = build()
        except Exception as error:
            raise ModelError(
                f"the model '{spec}' cannot be built: {reason(error)}.",
                argument="model",
                got=spec,
                remedy="Choose another name.",
            ) from error
        leave_no_layer_trivial(model)
    return model


def _from_file(spec: str, seed: int) -> Source:
    prepare()  # the file may import torchvision, also through timm
    with seeded(seed):
        model = user_files.build(spec)
    file = Path(spec.rpartition(":")[0])
    return Source(
        spec,
        model,
        _declared_preprocessing(model, spec),
        user_files.declared_classes(model, spec),
        f"weights as {spec} sets them; whether they are trained is not known",
        trained=None,
        example_inputs=getattr(model, "example_inputs", None),
        file=file,
    )


def _declared_preprocessing(model: nn.Module, spec: str) -> Preprocessing:
    declared = getattr(model, "preprocess", None)
    if isinstance(declared, Preprocessing):
        return declared
    if isinstance(declared, Mapping):
        return preprocessing.from_mapping(declared, spec)
    if declared is not None:
        kind = type(declared).__name__
        expected = 'a dictionary such as {"size": 224, "mean": [...], "std": [...]}'
        raise ModelError(
            f"'preprocess' of the model of {spec} is {kind}, expected {expected}.",
            argument="preprocess",
            got=kind,
            expected=expected,
        )
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping) and "timm" in sys.modules:
        return timm_preprocessing(model, spec)
    return Preprocessing(
        source=f"ImageNet defaults, as the model of {spec} declares none", assumed=True
    )


def _import(package: str, spec: str) -> ModuleType:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, "models", f"the model '{spec}'")
    prepare()
    return importlib.import_module(package)


def _unknown_name(spec: str, name: str, known: list[str]) -> ModelError:
    near = did_you_mean(name, known)
    return ModelError(f"unknown model '{spec}':", argument="model", got=spec, remedy=near)
