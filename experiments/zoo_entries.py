"""What the support matrix measures: models by group and family, each built from its constructor.

A timm family is a module of timm, a torchvision family a module of torchvision, a transformers
family a configuration, a graph family a convolution of torch_geometric. No weights are loaded.
"""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Any
Built = tuple[nn.Module, Inputs]

GROUPS = ("timm", "torchvision", "transformers", "graphs")
LIMIT = 100_000_000  # parameters of the variants in the full run
NATIVE = 256  # the largest side of an image in the run over families
SMALL = 128  # and in the run over all variants, where a model takes it


@dataclass(frozen=True)
class Entry:
    """One model. ``builds``: ways to make it and its inputs, the preferred first."""

    group: str
    family: str
    name: str
    builds: tuple[Callable[[], Built], ...]
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


def prepare() -> None:
    """Imports what the entries need, so that forked processes have it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a configuration needs no hub
    from omenn.models import torchvision_remedy

    torchvision_remedy.prepare()
    import timm  # noqa: F401
    import torch_geometric.nn  # noqa: F401
    import torchvision  # noqa: F401
    import transformers
    import transformers.generation.utils
    import transformers.models.auto.modeling_auto  # noqa: F401

    for kind, *_ in (*_TEXT.values(), *_VISION.values(), ("clip",), ("siglip",)):
        kind = kind.replace("-", "_").removesuffix("_text")
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


# --- timm -------------------------------------------------------------------------------------

# Families whose smallest variant has more than 150 M parameters, built small by the constructor.
BUILT_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_vit": (
        "deepseek_vit_412m",
        {"depth": 3, "embed_dim": 128, "num_heads": 4, "img_size": 84},
    ),
    "gemma4_vit": (
        "gemma4_vit_167m",
        {"depth": 3, "embed_dim": 128, "num_heads": 4, "head_dim": 32, "intermediate_size": 256,
         "img_size": 96},
    ),
}  # fmt: skip
SMALL_VARIANT = " (built small)"


def timm_families() -> dict[str, list[str]]:
    """Module of timm → names of its variants."""
    import timm

    return {m: timm.list_models(module=m) for m in timm.list_modules()}


def sides(native: int, largest: int) -> list[int]:
    """Image sides to try: half and half again, which keeps what windows and patches need.

    >>> sides(224, 256), sides(224, 128), sides(448, 128)
    ([224], [112, 224], [112, 224, 448])
    """
    found = [native]
    while (found[-1] > largest and found[-1] % 2 == 0) or found[-1] > 2 * largest:
        found.append(found[-1] // 2)
    return found[::-1]


def _timm(name: str, side: int, **options: Any) -> Built:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    channels, *_, native = cfg.input_size if cfg else (3, 224, 224)
    sized = {"img_size": side} if side != native else {}
    try:
        model = timm.create_model(name, pretrained=False, **(sized | options))
    except TypeError:  # it takes any size
        model = timm.create_model(name, pretrained=False, **options)
    return model, torch.randn(1, channels, side, side)


def timm_entry(family: str, name: str, largest: int) -> Entry:
    """A variant at a side of at most about ``largest``, at its own where that does not run."""
    import timm

    base, options, found = name, {}, []
    if name.endswith(SMALL_VARIANT):
        base, options = BUILT_SMALL[family]
        found = [options["img_size"]]
    cfg = timm.get_pretrained_cfg(base)
    found = found or sides(cfg.input_size[-1] if cfg else 224, largest)
    builds = tuple(partial(_timm, base, side, **options) for side in found)
    return Entry("timm", family, name, builds)


def timm_smallest(parameters: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(family, its smallest variant); timm's miniatures for tests, test_*, are not counted."""
    for family, names in timm_families().items():
        if family in BUILT_SMALL:
            yield family, BUILT_SMALL[family][0] + SMALL_VARIANT
            continue
        real = [n for n in names if not n.startswith("test_")]
        yield family, min(real, key=lambda n: parameters[n])


def timm_parameters() -> Iterator[tuple[str, int]]:
    """(variant, number of parameters) of all of timm, counted without memory for them."""
    import timm

    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        yield name, sum(p.numel() for p in model.parameters())


# --- torchvision ------------------------------------------------------------------------------


def _torchvision(name: str, shape: tuple[int, ...]) -> Built:
    import torchvision

    extra: dict[str, Any] = {}
    if "segmentation" in _home(name):
        extra = {"weights_backbone": None}
    elif name in ("googlenet", "inception_v3"):
        extra = {"init_weights": False}
    elif name.startswith("vit"):
        extra = {"image_size": shape[-1]}
    return torchvision.models.get_model(name, weights=None, **extra), torch.randn(shape)


def _home(name: str) -> str:
    import torchvision

    return torchvision.models.get_model_builder(name).__module__


def _centre_pixel(out: Tensor) -> Tensor:
    return out[:, 5, out.shape[2] // 2, out.shape[3] // 2]


def torchvision_entries(largest: int) -> Iterator[Entry]:
    """Classification, video and segmentation."""
    import torchvision.models as m

    for module in (None, m.segmentation, m.video):
        for name in m.list_models(module=module or m):
            home = _home(name).removeprefix("torchvision.models.")
            if home.startswith("video"):
                side, shapes = 112, [(1, 3, 16, 224, 224)] if "mvit" in name else []
                shapes = shapes or [(1, 3, 8, side, side), (1, 3, 16, 224, 224)]
            else:
                native = 299 if name == "inception_v3" else 256 if "swin_v2" in name else 224
                found = [native] if name == "maxvit_t" else sides(native, largest)
                shapes = [(1, 3, s, s) for s in found]
            builds = tuple(partial(_torchvision, name, shape) for shape in shapes)
            options = {}
            if home.startswith("segmentation"):
                options = {"output": "out", "target": _centre_pixel}
            yield Entry("torchvision", home, name, builds, options)


# --- transformers -----------------------------------------------------------------------------

# (kind, head, size) by name, from small configurations
_CONFIGURATIONS = tomllib.loads(
    Path(__file__).with_name("zoo_transformers.toml").read_text(encoding="utf-8")
)
_SIZE, _PATCHES = (_CONFIGURATIONS["bases"][name] for name in ("plain", "patches"))


def _configured(group: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    found = {}
    for name, row in _CONFIGURATIONS[group].items():
        own = {key: value for key, value in row.items() if key not in ("kind", "head", "base")}
        base = _CONFIGURATIONS["bases"].get(row.get("base"), {})
        found[name] = (row["kind"], row.get("head", ""), base | own)
    return found


_TEXT, _VISION = _configured("text"), _configured("vision")


def _last_token(out: Tensor) -> Tensor:
    return out[:, -1, 7]


def _first_token(out: Tensor) -> Tensor:
    return out[:, 0, 7]


def _ids() -> dict[str, Tensor]:
    ids = torch.randint(3, 100, (2, 16))
    mask = torch.ones_like(ids)
    mask[0, 11:] = 0  # the first sequence is padded
    return {"input_ids": ids, "attention_mask": mask}


def _text(kind: str, head: str, size: dict[str, Any], experts: str | None = None) -> Built:
    import transformers as t

    config = t.AutoConfig.for_model(kind, **size)
    inputs: dict[str, Any] = _ids()
    if head == "causal":
        given = {"experts_implementation": experts} if experts else {}
        model = t.AutoModelForCausalLM.from_config(config, **given)
        # A language model is explained at its last token, so nothing is padded.
        inputs = {"input_ids": inputs["input_ids"], "use_cache": False}
    elif head == "encoder":
        model = t.T5EncoderModel(config)
    else:
        model = t.AutoModelForSequenceClassification.from_config(config)
    return model, inputs


def _picture(kind: str, head: str, size: dict[str, Any]) -> Built:
    import transformers as t

    config = t.AutoConfig.for_model(kind, **size)
    if kind == "deit":  # two heads are registered for it
        return t.DeiTForImageClassification(config), {"pixel_values": torch.randn(1, 3, 64, 64)}
    auto = t.AutoModel if head == "features" else t.AutoModelForImageClassification
    return auto.from_config(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


def _two_towers(kind: str) -> Built:
    import transformers as t

    config = t.AutoConfig.for_model(
        kind, text_config=_SIZE | {"projection_dim": 32}, vision_config=_PATCHES, projection_dim=32
    )
    ids = torch.randint(3, 99, (2, 16))
    ids[:, -1] = 99  # the end-of-text token has the largest id
    pictures = torch.randn(2, 3, 64, 64)
    return t.AutoModel.from_config(config), {"input_ids": ids, "pixel_values": pictures}


def _first_pair(out: Tensor) -> Tensor:
    return out.diagonal()


def transformers_entries() -> Iterator[Entry]:
    for name, (kind, head, size) in _TEXT.items():
        options: dict[str, Any] = {"causal": {"target": _last_token}}.get(head, {})
        if head == "encoder":
            options = {"target": _first_token}
        if "num_local_experts" in size or "num_experts" in size:
            # The grouped kernel, transformers' default, has no float64; its plain form has.
            for how in ("eager", "grouped_mm"):
                build = partial(_text, kind, head, size, how)
                yield Entry("transformers", name, f"{name}, experts {how}", (build,), options)
            continue
        yield Entry("transformers", name, name, (partial(_text, kind, head, size),), options)
    for name, (kind, head, size) in _VISION.items():
        options = {"output": "pooler_output"} if head == "features" else {}
        yield Entry("transformers", name, name, (partial(_picture, kind, head, size),), options)
    for name, kind in (("CLIP", "clip"), ("SigLIP", "siglip")):
        options = {"output": "logits_per_image", "target": _first_pair}
        yield Entry("transformers", name, name, (partial(_two_towers, kind),), options)


# --- graphs -----------------------------------------------------------------------------------


class _Graph(nn.Module):
    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = make(7, 16), make(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x, edges)), edges)


def _graph(kind: str) -> Built:
    from torch_geometric import nn as g

    make: dict[str, Callable[[int, int], nn.Module]] = {
        "GCN": g.GCNConv,
        "GAT": lambda a, b: g.GATConv(a, b, heads=2, concat=False),
        "GIN": lambda a, b: g.GINConv(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Linear(b, b)),
            train_eps=True,
        ),
        "SAGE": g.SAGEConv,
        "Graph transformer": lambda a, b: g.TransformerConv(a, b, heads=2, concat=False, beta=True),
    }
    return _Graph(make[kind]), (torch.randn(20, 7), torch.randint(0, 20, (2, 60)))


def _one_node(out: Tensor) -> Tensor:
    return out[3, 1]


def graph_entries() -> Iterator[Entry]:
    for kind in ("GCN", "GAT", "GIN", "SAGE", "Graph transformer"):
        yield Entry("graphs", kind, kind, (partial(_graph, kind),), {"target": _one_node})


# --- by name ----------------------------------------------------------------------------------


def entry(group: str, family: str, name: str, largest: int = SMALL) -> Entry:
    """The entry of a row. Raises KeyError where there is none."""
    if group == "timm":
        return timm_entry(family, name, largest)
    made = {
        "torchvision": lambda: torchvision_entries(largest),
        "transformers": transformers_entries,
        "graphs": graph_entries,
    }[group]()
    return {e.name: e for e in made}[name]
