"""What bad input gets: one clear line that says what was wrong, what was got, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import ROWS, convnet, mlp
from opcases.case import draw
from opcases.linear import seeded

IN = "in module '(model)': "
RULE = "Give it a rule with omenn.rule(...), or explain at a later module with at=."


def message(kind: type[Exception], model: Any, inputs: Any = ROWS, *args, **options) -> str:
    """The text of the error, which must be one line and of the tree."""
    with pytest.raises(kind) as caught:
        omenn.explain(model, inputs, *args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert isinstance(caught.value, omenn.OmennError)
    return text


# --- the model -------------------------------------------------------------------------------


def test_training_mode() -> None:
    text = message(omenn.ModelError, nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train())
    assert text == (
        "the model is in training mode (3 modules, first '(model)'), where dropout and batch "
        "statistics make its output random. Call model.eval() first."
    )


def test_one_module_in_training_mode() -> None:
    net = mlp()
    net[1].train()
    assert "training mode (1 modules, first '1')" in message(omenn.ModelError, net)
    with pytest.raises(omenn.ModelError, match="training mode"):
        omenn.certify(net, ROWS)
    with pytest.raises(omenn.ModelError, match="training mode"):
        omenn.rows(net, ROWS, [0])
    x = ROWS.clone().requires_grad_()
    with pytest.raises(omenn.ModelError, match="training mode"), omenn.frozen(x, model=net):
        pass


def test_not_a_model() -> None:
    assert message(omenn.ModelError, "resnet") == (
        "the model must be a torch.nn.Module or a function, but str was given."
    )


def test_unknown_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x)

    text = message(omenn.ModelError, seeded(Net()), at="encodr")
    assert text.startswith("at='encodr' is not a module of the model. Did you mean 'encoder'?")
    assert "model.named_modules()" in text
    assert "Did you mean" not in message(omenn.ModelError, seeded(Net()), at="zzz")
    text = message(omenn.InputError, seeded(Net()), at="head")
    assert text == (
        "nothing could be explained: 'head' was never called, or returned no floating-point tensor."
    )
    text = message(omenn.ModelError, lambda x: x, at="head")
    assert text == "at= needs a torch.nn.Module; a function has no modules."


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [("bias", "pixel", "spatial, bilinear, attention, uniform, separate"),
     ("products", "both", "half, left, right")],
)  # fmt: skip
def test_unknown_option(option: str, value: str, choices: str) -> None:
    text = message(omenn.InputError, mlp(), **{option: value})
    assert text == f"{option}={value!r} is not known. Choose one of: {choices}."


# --- the input -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_input_that_is_not_finite(bad: float) -> None:
    x = ROWS.clone()
    x[0, 1] = x[2, 2] = bad
    assert message(omenn.InputError, mlp(), x) == (
        "the input has 2 values that are NaN or infinite; an explanation would be meaningless. "
        "Clean the input first."
    )
    assert "input 'x' has 2 values" in message(omenn.InputError, lambda x: x, {"x": x})
    assert "input 1 has 2 values" in message(omenn.InputError, lambda a, b: a, (ROWS, x))


@pytest.mark.parametrize("make", [lambda x: x / 0, lambda x: x * float("nan")])
def test_output_that_is_not_finite(make: Callable[[Tensor], Tensor]) -> None:
    assert message(omenn.InputError, make) == (
        "the model's output is not finite (NaN or infinite), so there is nothing to explain. "
        "Check the weights and the range of the input."
    )


def test_wrong_number_of_features() -> None:
    text = message(omenn.InputError, mlp(), draw(2, 5))
    assert text.startswith("the model cannot take an input of the shape (2, 5) float64: mat1 and")


def test_wrong_number_of_channels() -> None:
    text = message(omenn.InputError, convnet(), draw(2, 4, 6, 6))
    assert text.startswith("the model cannot take an input of the shape (2, 4, 6, 6) float64: ")
    assert "to have 3 channels, but got 4 channels" in text


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6), (1, 2, 3, 6, 6)])
def test_wrong_rank(shape: tuple[int, ...]) -> None:
    text = message(omenn.InputError, convnet(), draw(*shape))
    assert text.startswith(f"the model cannot take an input of the shape {shape} float64: ")


def test_wrong_type() -> None:
    text = message(omenn.InputError, mlp(), ROWS.float())
    assert "cannot take an input of the shape (3, 4) float32" in text


def test_wrong_arguments() -> None:
    text = message(omenn.InputError, mlp(), {"image": ROWS})
    assert "'image': (3, 4) float64" in text
    assert "unexpected keyword argument 'image'" in text
    text = message(omenn.InputError, mlp(), (ROWS, ROWS))
    assert "inputs of the shapes 0: (3, 4) float64, 1: (3, 4) float64" in text


def test_a_fault_of_the_model_keeps_its_cause() -> None:
    def model(x: Tensor) -> Tensor:
        raise ZeroDivisionError("no luck\nat all")

    with pytest.raises(omenn.InputError, match=r"float64: no luck\.$") as caught:
        omenn.explain(model, ROWS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_fault_of_freezing_is_not_blamed_on_the_input() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.cat([t.relu_() for t in x.repeat(1, 2).chunk(8, 1)], 1)

    text = message(omenn.ModelError, model)
    assert text.startswith("the model runs, but not in its frozen form: Output 0 of")
    assert "Explain at a later module with at=" in text


def test_a_fault_of_the_backward_pass() -> None:
    def model(x: Tensor) -> Tensor:
        y = x[:, None].expand(-1, 3, -1)
        y[..., :1].zero_()
        return y.sum(1)

    text = message(omenn.ModelError, model)
    assert text.startswith("the model runs, but cannot be pulled back: unsupported operation: more")
    assert "write in place only into what no other operator needs" in text


def test_memory_errors_pass_as_they_are() -> None:
    def model(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        omenn.explain(model, ROWS)


def test_empty_batch() -> None:
    assert message(omenn.InputError, mlp(), draw(0, 4)) == (
        "the input is empty: its shape is (0, 4)."
    )
    assert "input 1 is empty" in message(omenn.InputError, mlp(), (ROWS, draw(3, 0)))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.tensor(1.0), "the input is a single number; a batch dimension is needed."),
        ("photo.jpg", "inputs must be a tensor, a tuple or a dict of them, but str is given."),
        ((), "no tensor was given to explain: inputs must hold at least one."),
        ((1, 2), "no tensor was given to explain: inputs must hold at least one."),
        ({1: ROWS}, "the keys of inputs must be argument names, but 1 was given."),
        (
            ROWS.to_sparse(),
            "the input is sparse or quantised; give an ordinary tensor of real numbers.",
        ),
        (ROWS * 1j, "the input is complex; give an ordinary tensor of real numbers."),
        (
            ROWS.to("meta"),
            "the input is meta; give an ordinary tensor of real numbers.",
        ),
    ],
    ids=["number", "text", "nothing", "numbers", "key", "sparse", "complex", "meta"],
)
def test_unusable_inputs(inputs: Any, text: str) -> None:
    got = message(omenn.InputError, mlp(), inputs)
    assert got.replace("was given", "is given") == text.replace("was given", "is given")


def test_ids_that_reach_no_embedding() -> None:
    text = message(omenn.InputError, lambda ids: ids.double() @ draw(4, 2), ROWS.long())
    assert "the integer inputs never reached an embedding" in text
    assert "(3, 4) int64" in text
    assert "nn.Embedding" in text


# --- the target ------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "bad"), [(5, 5), (-6, -6), (torch.tensor([0, 9, 1]), 9)])
def test_target_out_of_range(target: Any, bad: int) -> None:
    text = message(omenn.TargetError, mlp(), ROWS, target)
    assert text == f"target {bad} is out of range: the model has 5 outputs, 0 to 4."


@pytest.mark.parametrize("target", [1.5, True, "cat", {}, omenn.Contrast(0, 1.5)])
def test_target_that_is_not_an_integer(target: Any) -> None:
    text = message(omenn.TargetError, mlp(), ROWS, target)
    shown = 1.5 if isinstance(target, omenn.Contrast) else target
    assert text == (
        "the target must be a class index (int), a tensor of 3 of them, a Contrast or a callable, "
        f"but {shown!r} was given."
    )


def test_contrast_against_a_word() -> None:
    text = message(omenn.TargetError, mlp(), ROWS, omenn.Contrast(0, "dog"))
    assert text == "Contrast(a, 'dog') is not known. Give a class, 'rest' or 'runner-up'."


def test_unknown_method() -> None:
    text = message(omenn.InputError, mlp(), method="omenm")
    assert text == "method='omenm' is not known: did you mean 'omenn'?"
    text = message(omenn.InputError, mlp(), method="###")
    known = ", ".join([*omenn.methods()][:8])
    assert text == f"method='###' is not known: known are {known}, …."
    text = message(omenn.InputError, mlp(), method="gamma", gama=1.0)
    assert text == (
        "method 'gamma' has no option 'gama'. Its options are: "
        "gamma, epsilon, complete, mix, bias, create_graph, at, resample, output, channel_dim."
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_target_tensor_that_is_not_of_integers(dtype: torch.dtype) -> None:
    text = message(omenn.TargetError, mlp(), ROWS, torch.ones(3).to(dtype))
    assert text == f"the target must be an integer, but has the type {dtype}."


@pytest.mark.parametrize("shape", [(2,), (1, 3), (4,)])
def test_target_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    text = message(omenn.TargetError, mlp(), ROWS, torch.zeros(shape, dtype=torch.long))
    assert (
        text == f"the target has the shape {shape}; one class for each of 3 samples was expected."
    )


@pytest.mark.parametrize(
    ("target", "got"), [(lambda y: y, "(3, 5)"), (lambda y: 1.0, "float"), (lambda y: None, "None")]
)
def test_target_function_that_returns_something_else(target: Any, got: str) -> None:
    text = message(omenn.TargetError, mlp(), ROWS, target)
    assert text.startswith(f"the target function returned {got}")
    assert "one number per sample, a tensor (B,), or a single number" in text


def test_target_function_with_the_wrong_number_of_values() -> None:
    text = message(omenn.TargetError, mlp(), ROWS, lambda y: y.sum(0))
    assert text.startswith("the target gives 5 numbers for 3 samples.")


def test_output_that_is_no_row_of_logits() -> None:
    text = message(omenn.TargetError, lambda x: x[:, :, None])
    assert text.startswith("the output has the shape (3, 4, 1), but one row of logits for each of")
    assert "Pass a callable as the target" in text
    assert "the output has the shape (2, 4)" in message(omenn.TargetError, lambda x: x[:2])


@pytest.mark.parametrize(
    ("model", "kind"),
    [(lambda x: None, "NoneType"), (lambda x: {"n": 3}, "int"), (lambda x: "cat", "str")],
)
def test_output_without_logits(model: Any, kind: str) -> None:
    text = message(omenn.TargetError, model)
    assert text.startswith(f"the model returned {kind}, in which no tensor of logits was found.")
    assert "output=" in text


@pytest.mark.parametrize(
    ("model", "output", "kind"),
    [(lambda x: (x,), 3, "tuple"), (lambda x: {"a": x}, "b", "dict"), (lambda x: x, "b", "Tensor")],
)
def test_output_that_is_not_there(model: Any, output: Any, kind: str) -> None:
    text = message(omenn.TargetError, model, ROWS, output=output)
    assert text == f"output={output!r} is not in what the model returned ({kind})."


@pytest.mark.parametrize(
    "model",
    [lambda x: torch.ones(3, 2), lambda x: (x > 0).double()],
    ids=["constant", "comparison"],
)
def test_output_that_does_not_depend_on_the_input(model: Any) -> None:
    text = message(omenn.TargetError, model)
    assert text.startswith("the explained output does not depend on the input")
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double().eval()
    with pytest.raises(omenn.TargetError, match=r"does not depend on the output of '0'\.$"):
        omenn.explain(net, ROWS, lambda y: torch.ones(3).double(), at="0")
