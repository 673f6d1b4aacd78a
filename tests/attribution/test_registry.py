"""The methods by name: what is said of them is the same everywhere, and holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import omenn
from omenn.attribution import Method, find, method
from omenn.attribution.registry import distinct

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def own() -> dict[str, Method]:
    """The methods of the package; examples in documents add some of their own."""
    found = omenn.methods().items()
    return {name: m for name, m in found if m.function.__module__.startswith("omenn.")}


NAMES = [*own()]


def test_the_exact_method_comes_first_and_the_others_by_name() -> None:
    assert NAMES[0] == "omenn"
    assert NAMES[1:] == sorted(NAMES[1:])
    assert len(NAMES) >= 25


def test_the_page_names_no_other_method() -> None:
    table = PAGE.partition("| `omenn` |")[2].partition("\n\n")[0]
    assert {"omenn", *re.findall(r"^\| `([\w-]+)`", table, flags=re.MULTILINE)} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_a_row_with_the_promise_and_the_source(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}`.*$", PAGE, flags=re.MULTILINE)
    first, _, promise, source = (c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1])
    m = omenn.methods()[name]
    assert promise.startswith(m.promise)
    number = re.search(r"\d{4}\.\d{5}|\d{4}\.\d{4}|doi (\S+)", m.source)
    assert (number is None and m.source in source) or (
        number is not None and (number[1] or number[0]) in source
    )
    assert first.endswith("ᵖ") == (m.extra == "peers")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_says_of_itself(name: str) -> None:
    m = omenn.methods()[name]
    assert m.promise in ("exact", "approximate", "none")
    assert len(m.summary) < 90
    assert not m.summary.endswith(".")
    assert "output" in m.options
    assert "steps" not in m.options or isinstance(m.options["steps"], int)
    assert m.summary in str(m)
    assert m.source in str(m)
    documented = m.function.__doc__ or ""
    for part in ("Example:", "Source:"):
        assert part in documented, f"{name} has no '{part}' in its docstring"


@pytest.mark.parametrize("name", [n for n in NAMES if "attention" not in n and n != "rollout"])
def test_the_result_carries_the_promise(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    fewer = {"steps": 3} if "steps" in omenn.methods()[name].options else {}
    e = omenn.explain(net, torch.rand(1, 3, 8, 8), 1, method=name, **fewer)
    assert (e.method, e.promise) == (name, omenn.methods()[name].promise)
    assert e.matrix.shape == (1, 8, 8)


def test_two_names_of_one_method_count_once() -> None:
    twice = {m.name: m.same_as for m in own().values() if m.same_as}
    assert twice == {"zplus": "alpha1beta0", "libragrad": "omenn"}
    assert sorted(distinct(own())) == sorted(set(own()) - set(twice))
    assert distinct(["zplus", "libragrad[psi=published]", "omenn"]) == [
        "zplus",
        "libragrad[psi=published]",
        "omenn",
    ]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"any of (\d+) methods", readme) == [str(len(distinct(own())))]


@pytest.mark.parametrize("name", ["zplus", "libragrad"])
def test_another_name_gives_the_same_map(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    a, b = (omenn.explain(net, x, 1, method=m) for m in (name, omenn.methods()[name].same_as))
    assert torch.equal(a.matrix, b.matrix)
    assert float(a.matrix.abs().sum()) > 0
    assert a.method == name


def test_an_unknown_method_and_an_unknown_option() -> None:
    net, x = nn.Linear(3, 2).eval(), torch.ones(1, 3)
    with pytest.raises(omenn.InputError) as error:
        omenn.explain(net, x, method="omen")
    assert (error.value.argument, error.value.got) == ("method", "'omen'")
    assert error.value.remedy == "did you mean 'omenn'?"
    with pytest.raises(omenn.InputError) as error:
        omenn.explain(net, x, method="rollout", steps=3)
    assert error.value.argument == "steps"
    assert error.value.expected == "heads, query, resample, output, channel_dim"


def test_a_method_that_returns_something_else() -> None:
    from omenn.attribution import registry

    method("odd", promise="none", summary="none", source="none")(lambda model, inputs, target: 7)
    try:
        with pytest.raises(omenn.InputError) as error:
            omenn.explain(nn.Linear(3, 2).eval(), torch.ones(1, 3), method="odd")
    finally:
        del registry._METHODS["odd"]
    assert str(error.value) == (
        "method 'odd' returned int, but a method returns an Explanation. "
        "omenn.attribution.propagate makes one, and so does answered_by of a Question."
    )


def test_a_promise_that_does_not_exist() -> None:
    with pytest.raises(omenn.InputError) as error:
        method("odd", promise="perfect", summary="", source="")
    assert str(error.value) == (
        "promise='perfect' is not known. Choose one of: exact, approximate, none."
    )


def test_methods_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        omenn.methods()["omenn"] = None  # type: ignore[index]
    assert find("omenn").promise == "exact"
