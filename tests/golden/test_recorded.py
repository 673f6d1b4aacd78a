"""Whatever is rebuilt: numbers, signatures and words are what they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from golden import recorded, store

ALL = [
    pytest.param(kind, part, marks=[pytest.mark.slow] if part in recorded.SLOW else [], id=part)
    for kind, parts in recorded.KINDS.items()
    for part in parts
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small, and sums of several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "part"), ALL)
def test_nothing_changed(kind: str, part: str) -> None:
    changed = [str(change) for change in recorded.changes(kind, part) if not change.kept]
    assert changed == []


@pytest.mark.parametrize("kind", recorded.KINDS)
def test_nothing_is_recorded_that_is_not_made(kind: str) -> None:
    assert store.names(recorded.path_of(kind)) == list(recorded.KINDS[kind])


BEFORE = {"a/map": torch.tensor([1.0, -2.0]), "a/why": {"x": 0.5}, "b/error": "InputError"}


class TestDifferences:
    def found(self, **changed: object) -> dict[str, bool]:
        now = {**BEFORE, **{name.replace("_", "/"): v for name, v in changed.items()}}
        now = {name: v for name, v in now.items() if v is not None}
        return {name: kept for name, _, kept in store.differences(BEFORE, now, store.Near())}

    def test_the_same(self) -> None:
        assert self.found() == {}

    def test_rounding_is_told_and_kept(self) -> None:
        assert self.found(a_map=torch.tensor([1.0, -2.0 + 3e-7])) == {"a/map": False}
        near = {**BEFORE, "a/map": torch.tensor([1.0, -2.0]).double()}
        moved = {**near, "a/map": near["a/map"] + 1e-10}
        assert [d.kept for d in store.differences(near, moved, store.Near())] == [True]
        assert self.found(a_why={"x": 0.5 + 1e-12}) == {"a/why.x": True}

    @pytest.mark.parametrize(
        "other",
        [
            torch.tensor([1.0, float("nan")]),
            torch.tensor([1.0]),
            torch.tensor([1.0, -2.0]).double(),
            torch.tensor([1, -2]),
            "map",
            None,
        ],
    )
    def test_other_tensors(self, other: object) -> None:
        assert self.found(a_map=other) == {"a/map": False}

    def test_other_facts(self) -> None:
        assert self.found(a_why={"x": 0.6}) == {"a/why.x": False}
        assert self.found(a_why={"y": 0.5}) == {"a/why.x": False, "a/why.y": False}
        assert self.found(c_new=1) == {"c/new": False}

    def test_errors_may_gain_fields_but_keep_their_kind(self) -> None:
        assert self.found(b_got=3) == {}
        assert self.found(b_error="TargetError") == {"b/error": False}
