"""The plan of a benchmark: models, methods, metrics and data; from a TOML file or from flags."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omenn.bench.plan_entries import Entry, check_options, with_words, words
from omenn.check import whole, wrong
from omenn.errors import InputError, did_you_mean, reason, unknown
from omenn.files.reading import read_text

KINDS = {"models": "model", "methods": "method", "metrics": "metric"}
ALL = "all"
BIRDS = Entry("birds", "birds", {})
USUAL = {
    "models": (Entry("birds-resnet", "birds-resnet", {}),),
    "methods": tuple(
        Entry(name, name, {}) for name in ("omenn", "libragrad", "cp-lrp", "attnlrp", "abslrp")
    ),
    "metrics": tuple(Entry(name, name, {}) for name in ("funnybirds", "gae")),
}
"""The defaults: they take minutes, and need no extra."""


@dataclass(frozen=True)
class Plan:
    """Models × methods × metrics on at most ``limit`` pictures of a split.

    ``classes``: the numbers of those whose pictures are used, all if there are none.
    ``trivial``: whether maps that do not depend on the model are rows, too. ``seed``: of the
    metrics, of methods that draw random numbers, of untrained models and of the intervals.
    ``chunk``: how many pictures are explained at once, at most.

    >>> plan = Plan.from_words({"methods": "omenn,abslrp", "limit": 8})
    >>> [method.name for method in plan.rows]
    ['omenn', 'abslrp', 'constant', 'centre', 'edges', 'random']
    """

    data: Entry = BIRDS
    split: str = "test"
    classes: tuple[int, ...] = ()
    limit: int = 64
    models: tuple[Entry, ...] = USUAL["models"]
    methods: tuple[Entry, ...] = USUAL["methods"]
    metrics: tuple[Entry, ...] = USUAL["metrics"]
    trivial: bool = True
    seed: int = 0
    chunk: int = 16
    device: str = "cpu"

    @classmethod
    def from_words(cls, given: Mapping[str, Any]) -> Plan:
        """From the keys of a file or the command line; lists may be words with commas.

        The split is the usual one of the data if it is not said.

        Raises:
            InputError: an unknown key or kind of data, a value of another type, an entry twice.
        """
        known = {entry.name: entry.default for entry in fields(cls)}
        found: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise InputError(
                    f"the plan has an unknown key '{key}':",
                    argument=key,
                    got=key,
                    remedy=did_you_mean(key, known),
                )
            if key == "data":
                found[key] = Entry.read(value, key)
            elif key in KINDS:
                found[key] = _entries(value, key)
            elif key == "classes":
                found[key] = _numbers(value)
            else:
                found[key] = _checked(key, value, type(known[key]))
        if "split" not in found:
            from omenn.data.dataset_registry import kind_of

            found["split"] = kind_of(found.get("data", BIRDS).base)[0].splits[0]
        return cls(**found)._complete()

    @classmethod
    def from_file(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Plan:
        """From a TOML file; ``changes`` are keys that take the place of the file's.

        Raises:
            InputError: no such file, no TOML, or as ``from_words``.
        """
        try:
            content = tomllib.loads(read_text(path, "plan", empty=True))
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise InputError(
                f"the plan '{path}' is no TOML: {reason(error)}.",
                argument="plan",
                got=str(path),
                remedy="Correct that line.",
            ) from error
        return cls.from_words({**content, **(changes or {})})

    @property
    def rows(self) -> tuple[Entry, ...]:
        """The methods and, unless the plan leaves them out, the trivial maps."""
        from omenn.metrics.explainers import TRIVIAL

        named = {entry.base for entry in self.methods}
        more = [Entry(name, name, {}) for name in TRIVIAL if name not in named]
        return (*self.methods, *(more if self.trivial else ()))

    @property
    def cells(self) -> int:
        """How many there are."""
        return len(self.models) * len(self.rows) * len(self.metrics)

    def record(self) -> dict[str, Any]:
        """As a TOML or JSON file has it."""
        record: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in KINDS:
                value = [one.record(KINDS[entry.name]) for one in value]
            elif isinstance(value, Entry):
                value = value.record("data")
            record[entry.name] = list(value) if isinstance(value, tuple) else value
        return record

    def toml(self) -> str:
        """The plan as a file that makes it again.

        >>> "limit = 64" in Plan().toml().splitlines()
        True
        """
        return "".join(f"{key} = {_toml(value)}\n" for key, value in self.record().items())

    def check_data(self) -> None:
        """Refuse data and metrics that are not known, or do not go together.

        Raises:
            InputError: those, their options, data that lacks what a metric needs.
            MissingExtra: a metric of Quantus, which is not installed.
        """
        from omenn.data.dataset_registry import kind_of
        from omenn.metrics import metric_registry

        kind, _ = kind_of(self.data.base)
        check_options(self.data, "data", kind.options, kind.read)
        gives = self.dataset().gives
        for metric in self.metrics:
            found = metric_registry.find(metric.base)
            check_options(metric, "metric", found.options, found.typed)
            for need in sorted(found.needs - gives):
                raise InputError(
                    f"metric '{metric.base}' needs {need}, and '{self.data.name}' has none in "
                    f"the split '{self.split}'.",
                    argument="data",
                    got=self.data.name,
                    expected=need,
                    remedy="Choose other data or leave the metric out.",
                )

    def check_methods(self) -> Plan:
        """The plan with options as each method takes them.

        Raises:
            InputError: an unknown method or option, with the nearest ones.
        """
        import omenn
        from omenn.metrics.explainers import TRIVIAL

        known = omenn.methods()
        typed = []
        for entry in self.methods:
            if entry.base in TRIVIAL:
                check_options(entry, "trivial map", {})
            elif entry.base in known:
                method = known[entry.base]
                entry = with_words(entry, method.function)
                check_options(entry, "method", method.options, method.function)
            else:
                raise unknown("method", entry.base, [*known, *TRIVIAL])
            typed.append(entry)
        return replace(self, methods=tuple(typed))

    def check_models(self) -> None:
        """Refuse options of models that are not known.

        Raises:
            InputError: with the nearest ones.
        """
        from omenn.models import sources

        for entry in self.models:
            check_options(entry, "model", {"weights": None, "seed": 0}, sources.load)

    def dataset(self, side: int = 64) -> Any:
        """The data set of the plan; pictures that are drawn have ``side`` pixels."""
        from omenn.data.dataset_registry import open_data

        return open_data(
            self.data.base,
            self.split,
            self.limit,
            side=side,
            classes=self.classes,
            options=self.data.options,
        )

    def _complete(self) -> Plan:
        """Every method or metric where the plan says ``all``."""
        import omenn
        from omenn.metrics.metric_registry import metrics

        plan = self
        if any(entry.base == ALL for entry in self.methods):
            plan = replace(plan, methods=_all(self.methods, omenn.methods()))
        if any(entry.base == ALL for entry in self.metrics):
            gives = self.dataset().gives
            fit = [name for name, metric in metrics().items() if metric.needs <= gives]
            plan = replace(plan, metrics=_all(self.metrics, fit))
        for key in KINDS:
            names = [entry.name for entry in getattr(plan, key)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(
                    f"{key} has '{twice}' twice.",
                    argument=key,
                    got=twice,
                    remedy="Leave one out, or name it.",
                )
        return plan


def _all(entries: Sequence[Entry], names: Iterable[str]) -> tuple[Entry, ...]:
    """``all`` becomes every name that is not listed yet."""
    there = [entry for entry in entries if entry.base != ALL]
    plain = {entry.name for entry in there}
    return (*there, *(Entry(name, name, {}) for name in names if name not in plain))


def _entries(value: Any, key: str) -> tuple[Entry, ...]:
    given = words(value) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise wrong(key, value, f"a list such as [{_EXAMPLES[key]}]")
    return tuple(Entry.read(one, KINDS[key]) for one in given)


def _numbers(value: Any) -> tuple[int, ...]:
    """From a list, or from words with commas."""
    given: Any = value
    if isinstance(value, str):
        given = [int(word) if word.isdecimal() else word for word in words(value)] or None
    if not isinstance(given, list | tuple) or not all(type(number) is int for number in given):
        raise wrong("classes", value, "a list of whole numbers such as [207]")
    return tuple(dict.fromkeys(given))


_EXAMPLES = {
    "models": '"birds-resnet", "timm:resnet18"',
    "methods": '"omenn", "abslrp"',
    "metrics": '"funnybirds", "gae"',
}
_LIMITS = {"limit": (1, 1_000_000), "chunk": (1, None), "seed": (0, None)}


def _checked(key: str, value: Any, kind: type) -> Any:
    if kind is int:
        return whole(key, value, *_LIMITS[key])
    if not isinstance(value, kind):
        raise wrong(key, value, "true or false" if kind is bool else "a word")
    return value


def _toml(value: Any) -> str:
    """JSON is TOML but for tables."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items())
        return f"{{ {inside} }}"
    return json.dumps(value, ensure_ascii=False)
