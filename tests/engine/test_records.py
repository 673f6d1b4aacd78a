"""One record an operator: nothing of it is said elsewhere, and what is said fits together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omenn
from omenn import xdnn
from omenn.attribution.abslrp_rules import abslrp_rules, elementwise
from omenn.engine.operators.table import OPERATORS, known, of_kind
from omenn.engine.operators.unruled import UNRULED
from omenn.engine.trace import spelling

SOURCE = Path(omenn.__file__).parent
HOME = SOURCE / "engine" / "operators"
# Where three operators may stand beside each other, since what is said there is said of no other.
ALLOWED = {
    "engine/location/lookups.py": {"sum", "mean", "max"},  # options of embedding_bag
    "cli/bench_command.py": {"data", "split", "chunk"},  # options of its own
    "attribution/rollout.py": {"mean", "max", "min"},  # options of its own
    "modalities/image/preprocessing.py": {"mean", "std", "positive"},  # fields of its own
    "engine/model_state.py": {
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
        "__ifloordiv__",
        "__imod__",
        "__ipow__",
        "__setitem__",
    },  # what Python writes in place
    "engine/probabilities.py": {"sigmoid", "logsigmoid", "softmax", "log_softmax"},  # its table
    "attribution/attention_maps.py": {"masked_fill", "where", "clamp", "mul", "div"},  # its table
}
NAMES = {
    name: operator
    for operator, record in OPERATORS.items()
    for name in (operator, *record.names.split())
}


def strings(node: ast.AST) -> Iterator[str]:
    """The words of a string, or the keys and items of what is written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = node.value.split()
        yield from words if all(word.isidentifier() for word in words) else ()
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
        items = node.keys if isinstance(node, ast.Dict) else node.elts
        for item in items:
            if isinstance(item, ast.Constant) and isinstance(item.value, str):
                yield item.value


def listed(tree: ast.AST) -> Iterator[set[str]]:
    """Collections of three operators or more."""
    for node in ast.walk(tree):
        found = {word for word in strings(node) if word in NAMES}
        if len(found) >= 3:
            yield found


def test_operators_are_listed_in_their_records_alone() -> None:
    for path in SOURCE.rglob("*.py"):
        if HOME in path.parents:
            continue
        name = str(path.relative_to(SOURCE))
        for found in listed(ast.parse(path.read_text())):
            more = {n for n in found if not {n, NAMES[n]} & ALLOWED.get(name, set())}
            assert not more, f"{name}: say it in the records of {sorted(more)}"


def test_a_list_of_operators_is_seen() -> None:
    for code in ("a = 'conv linear gelu'", "a = ('mm', 'bmm', 'mul')", "a = {'cat': 1, 'stack': 2,"
                 " 'pad': 3}"):  # fmt: skip
        assert list(listed(ast.parse(code)))
    assert not list(listed(ast.parse("a = 'Lists of words like cat, stack and pad are not.'")))


def test_each_name_is_one_of_torch_and_of_this_operator_alone() -> None:
    for name, record in OPERATORS.items():
        for spelled in record.names.split():
            homes = [
                h for h in spelling._HOMES if any(True for _ in spelling._functions(h, spelled))
            ]
            assert homes, f"{spelled} of {name} is nowhere in torch"
            assert NAMES[spelled] == name
        assert set(record.exchanged.split()) <= set(record.names.split()), name


def test_what_is_said_of_arguments_is_said_of_its_own() -> None:
    for name, record in OPERATORS.items():
        said = {*record.summand.split(), *record.factors.split(), *record.weight.split()}
        assert said - {"value"} <= set(record.arguments.split()), name


def test_what_has_no_rule_has_no_other_record() -> None:
    assert not set(UNRULED) & set(OPERATORS)
    assert known("no such operator").degree is None


# --- what the lists had forgotten ------------------------------------------------------------

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]], dtype=torch.float64)


def test_gelu_spelled_with_ndtr_is_gelu() -> None:
    ours = omenn.explain(lambda x: x * torch.special.ndtr(x), X, 1)
    assert torch.allclose(ours.weight, omenn.explain(F.gelu, X, 1).weight, atol=1e-12)


W = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
MIXED = {
    "addmm": lambda x: torch.addmm(torch.zeros(3).double(), x.sigmoid(), W) * x.tanh(),
    "tensordot": lambda x: torch.tensordot(x.sigmoid(), W, 1) * x.tanh(),
    "inner": lambda x: torch.inner(x.sigmoid(), W.T.contiguous()) * x.tanh(),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_bounded_numbers_is_not_bounded(name: str) -> None:
    ours = omenn.explain(MIXED[name], X, 1)
    plain = omenn.explain(lambda x: (x.sigmoid() @ W) * x.tanh(), X, 1)
    assert torch.allclose(ours.contribution, plain.contribution, atol=1e-12)


@pytest.mark.parametrize("name", ["ndtr", "erfcx", "sinc"])
def test_relevance_passes_every_function_with_a_value_at_zero(name: str) -> None:
    function = getattr(torch.special, name)
    total = lambda x: function(x).sum(1, keepdim=True)  # noqa: E731
    e = omenn.explain(total, X, 0, method="attnlrp", epsilon=0.0)
    assert torch.allclose(e.matrix.sum(1), e.output, rtol=1e-6)


def test_abslrp_has_its_rule_for_every_pointwise_function() -> None:
    rules = abslrp_rules("auto").rows
    missing = [name for name in of_kind("pointwise") if rules[name].rule is not elementwise]
    assert missing == []


class Scattered(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.scatter(1, torch.zeros(2, 1, dtype=torch.long), value=1.0)


def test_a_number_that_is_scattered_by_keyword_is_an_obstacle() -> None:
    assert [o.what for o in xdnn.obstacles(Scattered().eval(), X)] == ["scatter()"]
