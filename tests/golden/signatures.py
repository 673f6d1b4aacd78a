"""What omenn offers by name: functions, classes and methods of attribution, with their signatures.

Names that move to another folder need one line in ``HOMES``; what is recorded stays.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any, get_origin

import omenn
from golden.flat import Record

HOMES = {
    "omenn": "omenn",
    "birds": "omenn.data.birds",
    "judge": "omenn.metrics",
    "layers": "omenn.attribution.lrp_layers",
    "lightning": "omenn.xdnn.priors.lightning",
    "attribution": "omenn.attribution",
    "priors": "omenn.xdnn.priors",
    "show": "omenn.viz",
    "sources": "omenn.models.sources",
    "trainer": "omenn.xdnn.priors.trainer",
    "xdnn": "omenn.xdnn",
}
ADVERTISED = {  # of modules without __all__: what README and docs name
    "layers": ("Layer", "by_layer"),
    "lightning": ("PriorModule",),
    "priors": ("sparsity", "smoothness", "right_reasons", "consistency", "expected_sign", "find"),
    "sources": ("Source", "load"),
    "trainer": ("with_prior",),
}


def of(home: str) -> Record:
    """Every public name of a module, with what it is called with."""
    module = import_module(HOMES[home])
    names = ADVERTISED.get(home) or module.__all__
    return {key: v for name in names for key, v in _shown(name, getattr(module, name))}


def _shown(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """What a name stands for; of a class its methods and properties as well."""
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield name, f"class({bases})"
        if not issubclass(value, Exception):  # which are made in omenn alone
            yield f"{name}()", _signature(value)
        for member, inner in sorted(vars(value).items()):
            if not member.startswith("_"):
                yield f"{name}.{member}", _member(inner)
    elif get_origin(value) is not None:  # a type by another name
        yield name, str(value)
    elif inspect.ismodule(value):
        yield name, "module"
    elif callable(value):
        yield name, _signature(value)
    else:
        yield name, type(value).__name__


def _member(value: Any) -> str:
    if isinstance(value, property):
        return "property"
    plain = getattr(value, "__func__", value)  # of static and class methods
    return _signature(plain) if callable(plain) else "attribute"


def _signature(function: Any) -> str:
    try:
        text = str(inspect.signature(function))
    except ValueError:
        return "(?)"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def methods() -> Record:
    """Every method of attribution, with all that the list of methods says."""
    record: Record = {"order": list(omenn.methods())}
    for name, found in omenn.methods().items():
        record[name] = [found.promise, found.summary, found.source, found.extra, found.same_as]
        record[f"{name}()"] = _signature(found.function)
    return record


PARTS = {
    **{f"names of {home}": partial(of, home) for home in HOMES},
    "methods of attribution": methods,
}
