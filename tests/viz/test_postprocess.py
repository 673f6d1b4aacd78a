"""Explanations after processing: the sum taken again, each step told, the raw one untouched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn import Explanation
from omenn.errors import InputError
from omenn.explanation import leaves
from omenn.viz import bilateral, clamp, gaussian, mad, postprocess
from omenn.viz.postprocess import KINDS, PRESETS, parsed
from refusals import refused


class Two(nn.Module):
    """A picture and a table row to one row of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.row = nn.Conv2d(1, 3, 3), nn.Linear(5, 3)

    def forward(self, picture: Tensor, row: Tensor) -> Tensor:
        return torch.relu(self.picture(picture)).mean((2, 3)) + torch.tanh(self.row(row))


class Tokens(nn.Module):
    """Tokens (B, T, D) to logits (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.gelu(self.first(x)).mean(1))


@pytest.fixture
def tokens() -> Explanation:
    return omenn.explain(Tokens().eval(), torch.randn(2, 1 + 12, 4), 1)


def summed(explanation: Explanation) -> Tensor:
    """Σ of all matrices per sample, slowly."""
    rows = [m.double().reshape(len(explanation.output), -1) for m in leaves(explanation.matrix)]
    return torch.stack([row.sum(1) for row in rows]).sum(0)


class TestSum:
    @pytest.mark.parametrize(
        "steps",
        [
            ("clean",),
            ("clamp:0.05",),
            ("mad:2",),
            ("gaussian:1.5",),
            ("gaussian:3,5",),
            ("bilateral:1,0.2",),
            ("mad", "bilateral:1,0.2,input", "clean"),
        ],
    )
    def test_it_stays_and_is_taken_again(
        self, explanation: Explanation, steps: tuple[str, ...]
    ) -> None:
        e = explanation.processed(*steps)
        assert e.exact
        assert not torch.equal(e.matrix, explanation.matrix)
        assert torch.allclose(summed(e), summed(explanation), atol=1e-5)
        assert torch.equal(e.residual, e.output.double() - summed(e))
        assert torch.equal(e.magnitude, e.matrix.double().abs().flatten(1).sum(1))
        assert e.residual.dtype == torch.float64
        assert e.matrix.dtype == explanation.matrix.dtype

    def test_in_double_precision_to_rounding(self, network: nn.Module) -> None:
        raw = omenn.explain(network.double(), torch.randn(2, 3, 16, 16).double())
        e = raw.processed("mad", "clean", "bilateral:2,0.1")
        assert e.exact
        assert float((summed(e) - summed(raw)).abs().max()) < 1e-12 * float(raw.magnitude.min())

    @pytest.mark.parametrize("step", ["clean", "clamp:0.05", "mad", "gaussian:1", "bilateral:1,1"])
    def test_the_lossy_form_tells_its_residual(self, explanation: Explanation, step: str) -> None:
        e = explanation.processed(step, keep_sum=False)
        lost = summed(explanation) - summed(e)
        far = 10 * e.tolerance * (1 + e.magnitude)  # no rounding
        assert bool((lost.abs() > far).any())
        assert torch.allclose(e.residual, explanation.residual + lost, atol=1e-12)
        assert not e.exact
        assert "NOT EXACT" in repr(e)
        assert all("-lossy" in told for told in e.processing)

    def test_constants_kept_apart_stay_in_the_sum(self, network: nn.Module) -> None:
        raw = omenn.explain(network, torch.randn(2, 3, 16, 16), bias="separate")
        e = raw.processed("clean")
        assert e.exact
        assert torch.allclose(e.residual, e.output.double() - summed(e) - e.bias.double())
        wanted = e.matrix.double().abs().flatten(1).sum(1) + e.bias.double().abs()
        assert torch.allclose(e.magnitude, wanted)

    def test_steps_run_in_order_on_double_precision(self, explanation: Explanation) -> None:
        wide = explanation.matrix.double()
        e = explanation.processed("clamp:0.1", "gaussian-lossy:2", "mad:3")
        wanted = mad(gaussian(clamp(wide, 0.1), 2, keep_sum=False), 3)
        assert torch.equal(e.matrix, wanted.float())

    def test_a_sample_alone_is_what_it_is_in_a_batch(self, explanation: Explanation) -> None:
        both = explanation.processed("clean", "bilateral:1,0.2,input")
        cut = {
            name: getattr(explanation, name)[1:]
            for name in ("output", "target", "inputs", "matrix", "bias", "residual", "magnitude")
        }
        one = dataclasses.replace(explanation, **cut).processed("clean", "bilateral:1,0.2,input")
        assert torch.allclose(one.matrix, both.matrix[1:], rtol=1e-6, atol=0)


class TestWhatIsTold:
    @pytest.mark.parametrize(
        ("steps", "told"),
        [
            (("clean",), ("clamp:0.01", "gaussian:0.5")),
            (("clean-lossy",), ("clamp-lossy:0.01", "gaussian-lossy:0.5")),
            (("clamp", "mad"), ("clamp:0.01", "mad:2.5")),
            (("clamp: 0.010 ",), ("clamp:0.01",)),
            (("gaussian:1e0,3",), ("gaussian:1,3",)),
            (("bilateral-lossy:2,.1",), ("bilateral-lossy:2,0.1",)),
            (("bilateral:2,.1,input",), ("bilateral:2,0.1,input",)),
        ],
    )
    def test_canonical_steps_that_can_be_run_again(
        self, explanation: Explanation, steps: tuple[str, ...], told: tuple[str, ...]
    ) -> None:
        e = explanation.processed(*steps)
        assert e.processing == told
        assert torch.equal(explanation.processed(*told).matrix, e.matrix)

    def test_it_grows(self, explanation: Explanation) -> None:
        e = explanation.processed("clamp").processed("gaussian:1")
        assert e.processing == ("clamp:0.01", "gaussian:1")
        assert e.method == explanation.method

    def test_how_tokens_and_patches_lie(
        self, explanation: Explanation, tokens: Explanation
    ) -> None:
        where = {"grid": (3, 4)}, {"sequence": True}
        told = [tokens.processed("gaussian", **how).processing for how in where]
        assert told == [("gaussian:0.5 on a grid of 3 x 4",), ("gaussian:0.5 along the sequence",)]
        patches = explanation.processed("clamp", patch=4).processing
        assert patches == ("clamp:0.01 on patches of 4 x 4",)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets_are_made_of_known_steps(self, preset: str) -> None:
        assert all(str(step).partition(":")[0] in KINDS for step in parsed(preset))
        assert all("-lossy" in str(step) for step in parsed(preset + "-lossy"))
        assert parsed(preset, keep_sum=False) == parsed(preset + "-lossy")

    def test_the_width_of_clean_grows_with_the_map(self, explanation: Explanation) -> None:
        large = torch.randn(1, 240, 320)
        e = dataclasses.replace(explanation, output=torch.zeros(1), matrix=large)
        assert e.processed("clean").processing == ("clamp:0.01", "gaussian:6")
        wanted = gaussian(clamp(large, 0.01), 6)
        assert torch.allclose(e.processed("clean").matrix, wanted, atol=1e-6)


class TestUntouched:
    def test_the_raw_explanation(self, explanation: Explanation) -> None:
        before = {f.name: getattr(explanation, f.name) for f in dataclasses.fields(explanation)}
        copies = {k: v.clone() for k, v in before.items() if isinstance(v, Tensor)}

        def spoils(maps: Tensor) -> Tensor:
            return maps.zero_()

        e = explanation.processed("clamp", spoils)
        assert all(getattr(explanation, k) is v for k, v in before.items())
        assert all(torch.equal(before[k], v) for k, v in copies.items())
        assert not e.matrix.any()
        assert e.weight is explanation.weight
        assert e.contribution is explanation.contribution
        assert e.bias is explanation.bias
        assert e.sources is explanation.sources

    def test_the_matrix_in_double_precision_is_not_lent_to_a_callable(
        self, explanation: Explanation
    ) -> None:
        wide = dataclasses.replace(explanation, matrix=explanation.matrix.double())
        wide.processed(torch.Tensor.zero_)
        assert torch.equal(wide.matrix, explanation.matrix.double())

    def test_history_and_grad_mode(self, network: nn.Module) -> None:
        raw = omenn.explain(network, torch.randn(1, 3, 16, 16), create_graph=True)
        assert raw.matrix.requires_grad
        seen = []
        e = raw.processed("clean", lambda maps: (seen.append(torch.is_grad_enabled()), maps)[1])
        assert seen == [False]
        assert torch.is_grad_enabled()
        assert not e.matrix.requires_grad
        assert not e.residual.requires_grad

    def test_generators(self, explanation: Explanation) -> None:
        state = torch.get_rng_state()
        explanation.processed("mad", "clean", "bilateral:1,0.1")
        assert torch.equal(state, torch.get_rng_state())


class TestCallables:
    def test_one_that_keeps_the_sum_and_one_that_does_not(self, explanation: Explanation) -> None:
        def turned(maps: Tensor) -> Tensor:
            assert maps.dtype == torch.float64
            assert maps.shape == (2, 16, 16)
            return maps.flip(-1)

        e = explanation.processed(turned, torch.relu)
        assert e.processing == ("turned", "relu-lossy")
        assert torch.equal(e.matrix, explanation.matrix.flip(-1).relu())
        assert not e.exact

    @pytest.mark.parametrize(
        ("function", "argument", "got"),
        [
            (lambda m: m[:, 1:], "step", "shape (2, 15, 16)"),
            (lambda m: None, "step", "NoneType"),
            (lambda m: m / 0, "the result of step '<lambda>'", "512 values"),
            (lambda m: m.long(), "the result of step '<lambda>'", "torch.int64"),
            (lambda m: m.nothing, "step", "<lambda>"),
        ],
    )
    def test_what_it_may_not_return(
        self, explanation: Explanation, function: Callable[[Tensor], Any], argument: str, got: str
    ) -> None:
        with refused(argument, got):
            explanation.processed(function)


class TestLayouts:
    def test_tokens_in_front_of_the_grid_stay_in_every_step(self, tokens: Explanation) -> None:
        e = tokens.processed("clamp:0.2", "gaussian:1", grid=(3, 4))
        assert torch.equal(e.matrix[:, 0], tokens.matrix[:, 0])
        wide = tokens.matrix[:, 1:].double().reshape(2, 3, 4)
        wanted = gaussian(clamp(wide, 0.2), 1.0).flatten(1)
        assert torch.equal(e.matrix[:, 1:], wanted.float())
        assert e.exact

    def test_patches_are_one_cell_each(self, explanation: Explanation) -> None:
        e = explanation.processed("gaussian:1", patch=4)
        assert torch.allclose(e.matrix, gaussian(explanation.matrix, 1.0, patch=4))
        assert e.exact

    def test_a_sequence_on_request_only(self, tokens: Explanation) -> None:
        e = tokens.processed("gaussian:1", sequence=True)
        assert torch.allclose(e.matrix, gaussian(tokens.matrix, 1.0, sequence=True))
        assert tokens.processed("clamp:0.2").exact  # outliers need no neighbours
        with refused("maps", "(2, 13)"):
            tokens.processed("clean")


class TestGuides:
    def test_the_input_guides(self, explanation: Explanation) -> None:
        named = explanation.processed("bilateral:1,0.2,input")
        wanted = bilateral(explanation.matrix, 1.0, 0.2, explanation.inputs)
        assert torch.allclose(named.matrix, wanted, atol=1e-7)
        assert torch.equal(explanation.processed("bilateral:1,0.2", guide="input").matrix, wanted)
        alone = explanation.processed("bilateral:1,0.2")
        assert not torch.allclose(alone.matrix, wanted, atol=1e-4)

    def test_the_vectors_of_tokens_guide(self, tokens: Explanation) -> None:
        e = tokens.processed("bilateral:1,0.2,input", grid=(3, 4))
        wanted = bilateral(tokens.matrix, 1.0, 0.2, tokens.inputs.movedim(2, 1), grid=(3, 4))
        assert torch.allclose(e.matrix, wanted, atol=1e-7)

    def test_a_tensor_guides(self, explanation: Explanation) -> None:
        guide = torch.randn(2, 16, 16)
        e = explanation.processed("clamp", "bilateral:1,0.2", guide=guide)
        assert e.processing == ("clamp:0.01", "bilateral:1,0.2,guide")
        wide = clamp(explanation.matrix.double())
        assert torch.equal(e.matrix, bilateral(wide, 1.0, 0.2, guide).float())

    @pytest.mark.parametrize(
        ("steps", "guide", "got"),
        [
            (("bilateral:1,1",), torch.zeros(2, 5), "(2, 5)"),
            (("bilateral:1,1",), "inptu", "'inptu'"),
            (("bilateral:1,1,guide",), None, "None"),
            (("clean",), "input", "'input'"),
        ],
    )
    def test_mistakes(
        self, explanation: Explanation, steps: tuple[str, ...], guide: Any, got: str
    ) -> None:
        with refused("guide", got):
            explanation.processed(*steps, guide=guide)

    def test_no_input_lies_there(self, explanation: Explanation) -> None:
        e = dataclasses.replace(explanation, inputs=torch.zeros(2, 7))
        with refused("guide", "input"):
            e.processed("bilateral:1,1,input")


class TestSeveralInputs:
    @pytest.mark.parametrize("kind", [tuple, dict])
    def test_each_matrix_is_processed_alone(self, kind: type) -> None:
        inputs = {"picture": torch.randn(2, 1, 10, 12), "row": torch.randn(2, 5)}
        given = inputs if kind is dict else tuple(inputs.values())
        raw = omenn.explain(Two().eval(), given, 2)
        e = raw.processed("clamp:0.2")
        assert isinstance(e.matrix, kind)
        assert e.exact
        for was, now in zip(leaves(raw.matrix), leaves(e.matrix), strict=True):
            assert torch.equal(now, clamp(was.double(), 0.2).float())
        assert torch.allclose(e.residual, e.output.double() - summed(e))
        if kind is dict:
            assert list(e.matrix) == list(raw.matrix)

    def test_widths_that_differ_are_all_told(self) -> None:
        class Both(nn.Module):
            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return torch.stack([a.sum((1, 2, 3)), (b * b).sum((1, 2, 3))], 1)

        raw = omenn.explain(Both().eval(), (torch.randn(1, 1, 40, 40), torch.randn(1, 1, 8, 8)), 1)
        assert raw.processed("gaussian").processing == ("gaussian:1 / gaussian:0.5",)

    def test_the_matrix_that_cannot_be_processed_is_named(self) -> None:
        raw = omenn.explain(Two().eval(), (torch.randn(1, 1, 6, 6), torch.randn(1, 5)), 0)
        bad = dataclasses.replace(raw, matrix=(raw.matrix[0], raw.matrix[1] / 0))
        with refused("matrix 2 of 2", "5 values"):
            bad.processed("clamp")


def test_the_method_is_the_function(explanation: Explanation) -> None:
    e = postprocess(explanation, "mad", keep_sum=False)
    assert torch.equal(explanation.processed("mad", keep_sum=False).matrix, e.matrix)


def test_it_can_be_saved_and_drawn(explanation: Explanation, tmp_path: Any) -> None:
    e = explanation.processed("clean-lossy")
    back = Explanation.load(e.save(tmp_path / "e.safetensors"))
    assert back.processing == e.processing
    assert torch.equal(back.residual, e.residual)
    assert e.heatmap().shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("steps", "argument", "got"),
    [
        ((), "steps", ""),
        (("claen",), "step", "claen"),
        (("gausian:2",), "step", "gausian"),
        (("blur",), "step", "blur"),
        (("clean:2",), "step", "clean:2"),
        (("gaussian:x",), "step", "gaussian:x"),
        (("gaussian:",), "step", "gaussian:"),
        (("gaussian:1,3,5",), "step", "gaussian:1,3,5"),
        (("bilateral:2",), "step", "bilateral:2"),
        (("bilateral",), "step", "bilateral"),
        (("clamp:0.01,2",), "step", "clamp:0.01,2"),
        (("clamp:0.5",), "q", "0.5"),
        (("clamp:nan",), "q", "nan"),
        (("mad:-1",), "k", "-1.0"),
        (("gaussian:0",), "sigma", "0.0"),
        (("gaussian:1000",), "sigma", "1000.0"),
        (("gaussian:1,4",), "kernel", "4.0"),
        ((3,), "step", "3"),
    ],
)
def test_mistakes(
    explanation: Explanation, steps: tuple[Any, ...], argument: str, got: str
) -> None:
    with refused(argument, got):
        explanation.processed(*steps)


def test_a_mistyped_step_has_a_remedy(explanation: Explanation) -> None:
    with pytest.raises(InputError) as caught:
        explanation.processed("gausian:2")
    assert "'gaussian'" in caught.value.remedy


def test_what_is_no_explanation_and_no_number(explanation: Explanation) -> None:
    with refused("explanation", "tensor("):
        postprocess(explanation.matrix, "clean")  # type: ignore[arg-type]
    bad = dataclasses.replace(explanation, matrix=explanation.matrix * float("nan"))
    with refused("the matrix", "512 values"):
        bad.processed("clean")
