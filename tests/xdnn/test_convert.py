"""Conversion: what becomes of each network, and that it is homogeneous afterwards."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode

import omenn
from omenn.errors import InputError, ModelError
from omenn.models.architectures import BirdsConvNet, BirdsResNet, BirdsViT
from omenn.models.randomness import leave_no_layer_trivial
from omenn.xdnn import Obstacle, check, convert, obstacles
from omenn.xdnn.homogeneous_layers import ScaleNorm

F64 = torch.float64
ALPHAS = (0, 0.1, 0.5, 2, 10)


def vgg11_bn() -> nn.Module:
    """With a small classifier: the usual one has a hundred million weights."""
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], True)
    net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return net.extend([nn.Linear(512, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)])


NETWORKS: dict[str, Any] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=3, width_per_group=8),
    "vgg11_bn": vgg11_bn,
    "resnet26t": lambda: timm.create_model("resnet26t", num_classes=3, base_width=16),
    "birds-resnet": lambda: BirdsResNet(5, (8, 8, 16, 16)),
    "birds-convnet": lambda: BirdsConvNet(5, (8, 8, 16, 16)),
}


def images(size: int = 32, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def ready(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with no layer trivial: also biases are drawn."""
    leave_no_layer_trivial(model)
    return model.double().eval()


def revived(model: nn.Module) -> nn.Module:
    """Weights that Fixup sets to zero are drawn, so that there is something to see."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def assert_homogeneous(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        once = model(x)
        assert once.abs().max() > 1e-6
        for alpha in ALPHAS:
            size = max(alpha, 1) * once.abs().max()
            assert (model(alpha * x) - alpha * once).abs().max() <= 1e-12 * size


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """All that a caller could find changed."""
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [(n, type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()],
        [(n, p.requires_grad, id(p)) for n, p in model.named_parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(one: tuple[Any, ...], two: tuple[Any, ...]) -> None:
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][k], two[0][k]) for k in one[0])
    assert one[1:3] == two[1:3]
    assert torch.equal(one[3], two[3])
    assert one[4] == two[4]


# --- whole networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["scale", "fixup"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_become_homogeneous(name: str, norm: Any) -> None:
    model = ready(NETWORKS[name]())
    before = fingerprint(model)
    free = convert(model, norm)
    assert_same(before, fingerprint(model))
    assert obstacles(free) == ()
    assert_homogeneous(revived(free), images())
    biases = [n for n, p in free.named_parameters() if n.endswith("bias")]
    assert biases == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in free.modules())


@pytest.mark.parametrize("name", ["birds-resnet", "birds-convnet"])
def test_the_operators_prove_it(name: str) -> None:
    free = convert(ready(NETWORKS[name]()), "scale", inputs=images())
    assert check(free, images()).homogeneous


def small_vit() -> BirdsViT:
    return BirdsViT(5, 16, 2, 2, 32)


def test_a_vision_transformer_with_stand_ins() -> None:
    model = ready(small_vit())
    x = images(64)
    before = fingerprint(model)
    free = convert(model, stand_ins="all", inputs=x)
    assert_same(before, fingerprint(model))
    assert_homogeneous(free, x)
    assert check(free, x).homogeneous
    assert obstacles(free, x) == ()
    frozen = [n for n, p in free.named_parameters() if not p.requires_grad]
    assert frozen == ["class_token", "position"]
    assert not free.class_token.any()
    assert not free.position.any()
    assert type(free.stem[1]) is nn.ReLU
    e = omenn.explain(free, x)
    assert e.exact


def test_the_vision_transformer_trains_in_bfloat16() -> None:
    model = small_vit()
    free = convert(model, stand_ins="all", inputs=images(64, torch.float32))
    assert_trains(free)
    zero = [n for n, p in free.named_parameters() if not p.requires_grad]
    assert all(not free.get_parameter(n).any() for n in zero)


@pytest.mark.parametrize("norm", ["scale", "fixup"])
def test_the_residual_network_trains_in_bfloat16(norm: Any) -> None:
    assert_trains(convert(BirdsResNet(5, (8, 8, 16, 16)), norm))


class Around(TorchFunctionMode):
    """A mode around the network, as training has one: it must find no softmax attention."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


class Student(nn.Module):
    """A second head on the same features, as the training of the bundled networks has it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.second = network, nn.Linear(network.head.in_features, 2)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        features = self.network.features(x)
        heads = self.network.head(features), self.second(features)
        return sum(F.cross_entropy(h.float(), labels) for h in heads)  # type: ignore[return-value]


def assert_trains(free: nn.Module) -> None:
    """As the training of the bundled networks does it; gradients reach all that is not frozen."""
    student = Student(free).train()
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.05)
    x = images(64, torch.float32)
    losses = []
    for step in range(8):
        with torch.autocast("cpu", torch.bfloat16), Around():
            loss = student(x, torch.tensor([0, 1]))
        optimiser.zero_grad()
        loss.backward()
        if step == 4:  # Fixup's zeros are gone by then
            missing = [
                name
                for name, p in free.named_parameters()
                if p.requires_grad and (p.grad is None or not p.grad.any())
            ]
            assert missing == []
        assert all(torch.isfinite(p.grad).all() for p in free.parameters() if p.grad is not None)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for module in free.modules():
        if isinstance(module, ScaleNorm):
            assert module.running_square.dtype == torch.float32
            assert not torch.equal(module.running_square, torch.ones_like(module.running_square))
    free.eval()
    with torch.no_grad():
        once = free(x)
        torch.testing.assert_close(free(2 * x), 2 * once, rtol=1e-4, atol=1e-4)


# --- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_scale_keeps_the_matrix_of_a_trained_batch_norm(affine: bool) -> None:
    norm = nn.BatchNorm2d(4, eps=0.1, momentum=0.2, affine=affine).double()
    for _ in range(5):
        norm(torch.randn(8, 4, 3, 3, dtype=F64) * 3 + 1)
    if affine:
        nn.init.uniform_(norm.weight, -2, 2)
    norm.eval()
    free = convert(norm, "scale")
    x = images(3)[:1, :1].expand(1, 4, 3, 3).clone().requires_grad_()
    slopes = [torch.autograd.grad(m(x).sum(), x)[0] for m in (norm, free)]
    torch.testing.assert_close(slopes[0], slopes[1])
    assert isinstance(free, ScaleNorm)
    assert (free.eps, free.momentum, free.training) == (0.1, 0.2, False)
    assert torch.equal(free.running_square, norm.running_var)


def test_each_layer_of_a_network_keeps_its_matrix() -> None:
    model = ready(BirdsResNet(3, (4, 4, 4, 4), (1, 1, 1, 1)))
    free = convert(model, "scale")
    x = images(8)
    torch.testing.assert_close(
        free.stem[:2](x), model.stem[:2](x) - model.stem[:2](torch.zeros_like(x))
    )


def test_keep_leaves_batch_norms() -> None:
    model = ready(BirdsResNet(3, (4, 4, 4, 4)))
    free = convert(model, "keep")
    kept = {k: v for k, v in model.state_dict().items() if k != "head.bias"}
    assert free.state_dict().keys() == kept.keys()
    assert all(torch.equal(v, kept[k]) for k, v in free.state_dict().items())
    assert {o.what for o in obstacles(free)} == {"BatchNorm2d"}
    with_run = convert(model, "keep", inputs=images(64))
    assert all(torch.equal(v, kept[k]) for k, v in with_run.state_dict().items())
    assert all(p.requires_grad for p in with_run.parameters())


def test_other_names_of_the_state_stay() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    free = convert(model, "scale")
    gone = model.state_dict().keys() - free.state_dict().keys()
    assert {name.rsplit(".", 1)[1] for name in gone} == {"bias", "running_mean", "running_var"}
    new = free.state_dict().keys() - model.state_dict().keys()
    assert {name.rsplit(".", 1)[1] for name in new} == {"running_square"}


def test_without_a_batch_norm_weights_stay() -> None:
    model = BirdsConvNet(3, (4, 4, 4, 4))
    for norm in ("fixup", "scale", "keep"):
        free = convert(model, norm)
        state = model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in free.state_dict().items())


def test_fixup_draws_all_weights_anew() -> None:
    model = BirdsResNet(3, (4, 4, 4, 4))
    free = convert(model, "fixup")
    state = model.state_dict()
    assert [k for k, v in free.state_dict().items() if torch.equal(v, state[k])] == []


def test_an_activation_inside_of_a_batch_norm_stays() -> None:
    model = timm.create_model("regnetx_002", num_classes=3).eval()
    for norm in ("scale", "fixup"):
        free = convert(model, norm)
        assert isinstance(free.stem.bn.act, nn.ReLU)
        assert not (free.stem(images(8, torch.float32)) < 0).any()


def test_a_frozen_batch_norm_is_one() -> None:
    norm = torchvision.ops.FrozenBatchNorm2d(3).eval()
    norm.running_var.fill_(4.0)
    norm.bias.fill_(1.0)
    free = convert(nn.Sequential(norm), "scale")
    x = torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(free(x), x / (4 + norm.eps) ** 0.5)


def test_flags_and_types_are_kept() -> None:
    model = BirdsResNet(3, (4, 4, 4, 4)).to(torch.bfloat16)
    model.train()
    model.stages.eval()
    model.stem[1].weight.requires_grad_(False)
    free = convert(model, "scale")
    flags = {n: m.training for n, m in model.named_modules()}
    assert flags == {n: m.training for n, m in free.named_modules()}
    assert not free.stem[1].weight.requires_grad
    assert {v.dtype for v in free.state_dict().values()} == {torch.bfloat16, torch.int64}


# --- biases and constants ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 3),
        nn.Conv1d(2, 3, 1),
        nn.Conv2d(2, 3, 1),
        nn.Conv3d(2, 3, 1),
        nn.ConvTranspose1d(2, 3, 1),
        nn.ConvTranspose2d(2, 3, 1),
        nn.ConvTranspose3d(2, 3, 1),
        nn.Bilinear(2, 2, 3),
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True),
    ],
    ids=lambda m: type(m).__name__,
)
def test_layers_lose_their_biases(layer: nn.Module) -> None:
    free = convert(layer)
    assert [n for n in free.state_dict() if "bias" in n] == []
    weights = {n: v for n, v in layer.state_dict().items() if "bias" not in n}
    assert free.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[n]) for n, v in free.state_dict().items())


def test_a_bilinear_form_is_of_degree_two() -> None:
    free = convert(nn.Bilinear(2, 2, 3))
    x = torch.randn(4, 2)
    torch.testing.assert_close(free(3 * x, 3 * x), 9 * free(x, x))


def test_a_recurrent_layer_with_relu() -> None:
    x = torch.randn(2, 5, 3, dtype=F64)
    free = convert(nn.RNN(3, 4, nonlinearity="relu", batch_first=True).double().eval())
    torch.testing.assert_close(free(2 * x)[0], 2 * free(x)[0])
    assert obstacles(free) == ()
    assert not free.bias_ih_l0.requires_grad


class Tokens(nn.Module):
    """Constants of all kinds: used in part, looked up, computed, and one that multiplies too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(torch.randn(1, 9, 4))
        self.kinds = nn.Embedding(2, 4)
        self.scale = nn.Parameter(torch.randn(4))
        self.both = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(4))
        self.register_buffer("waves", torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.position[:, : x.shape[1]]
        x += self.kinds(torch.zeros(1, dtype=torch.long))
        x = torch.addcmul(self.shift, x, self.scale) * self.both + self.both
        return (x + self.waves[: x.shape[1]] + 1.0).sum(1)


def test_constants_that_a_run_finds_are_zero_and_frozen() -> None:
    x = torch.randn(2, 5, 3)
    free = convert(Tokens().eval(), inputs=x)
    frozen = [n for n, p in free.named_parameters() if not p.requires_grad]
    assert frozen == ["token", "position", "shift", "kinds.weight"]
    assert not any(free.get_parameter(n).any() for n in frozen)
    assert {str(o) for o in obstacles(free, x)} == {
        "(model): parameter 'both': it is added as a constant, and multiplies as well, so that it "
        "cannot be zero",
        "(model): add(): it adds a constant (made of 'waves')",
        "(model): add(): it adds a constant",
    }


def test_parameters_are_listed_without_a_run_and_left_alone() -> None:
    model = Tokens()
    names = [o.what for o in obstacles(model)]
    assert names == [f"parameter {n!r}" for n in ("token", "position", "scale", "both", "shift")]
    with pytest.raises(ModelError, match="there is nothing to convert"):
        convert(model)


def test_constants_of_a_class_of_another_library() -> None:
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential(Conv1D(4, 3), nn.ReLU()).eval()
    nn.init.normal_(net[0].bias)
    x = torch.randn(2, 3)
    free = convert(net, inputs=x)
    assert not free[0].bias.any()
    assert check(free, x).homogeneous


def test_a_mask_is_no_constant() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            q = self.proj(x)
            scores = q @ x.transpose(1, 2)
            closed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(closed, -1e9) + torch.where(closed, -torch.inf, 0.0)
            scores = scores + torch.where(closed, -1e9, 0.0)
            return scores.softmax(-1) @ x

    x = torch.randn(2, 5, 4, dtype=F64)
    free = convert(Masked().double().eval(), stand_ins="all", inputs=x)
    assert obstacles(free, x) == ()
    torch.testing.assert_close(free(2 * x), 2 * free(x))
    other = x.clone()
    other[:, 3:] += 1
    torch.testing.assert_close(free(other)[:, :3], free(x)[:, :3])  # the past alone


def test_a_table_that_is_looked_up_with_ids_is_no_constant() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def forward(self, ids: Tensor) -> Tensor:
            start = self.words(torch.zeros(len(ids), 1, dtype=torch.long))
            return torch.cat([start, self.words(ids)], 1).sum(1)

    (found,) = obstacles(Text().eval(), torch.tensor([[1, 2]]))
    assert "multiplies as well" in found.reason
    with pytest.raises(ModelError, match="there is nothing to convert"):
        convert(Text().eval(), inputs=torch.tensor([[1, 2]]))


def test_ids_are_explained_at_their_embedding() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Embedding(7, 4)
            self.head = nn.Linear(4, 9)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
            return self.head(F.gelu(x).mean(1))

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    free = convert(Text().eval(), stand_ins="all", inputs={"ids": ids})
    assert free.head.weight is free.words.weight
    assert free.words.weight.any()
    assert free.words.weight.requires_grad
    assert not free.places.weight.any()
    assert check(free, {"ids": ids}).homogeneous


# --- modules in odd places -----------------------------------------------------------------------


def test_a_module_that_is_used_twice_is_replaced_once() -> None:
    norm, act = nn.BatchNorm1d(4), nn.GELU()
    net = nn.ModuleDict({"a": nn.Sequential(norm, act), "b": nn.Sequential(act, norm)})
    free = convert(net, "scale", stand_ins="activations")
    assert free["a"][0] is free["b"][1]
    assert isinstance(free["a"][0], ScaleNorm)
    assert free["a"][1] is free["b"][0]
    assert isinstance(free["a"][1], nn.ReLU)


def test_tied_weights_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    for norm in ("scale", "fixup"):
        free = convert(net, norm)
        assert free[0].weight is free[2].weight


def test_weight_norm_and_spectral_norm_go_along() -> None:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(4, 2)),
    )
    net.double().eval()
    free = convert(net)
    assert parametrize.is_parametrized(free[0], "weight")
    assert_homogeneous(free, torch.randn(5, 3, dtype=F64))
    assert check(free, torch.randn(5, 3, dtype=F64)).homogeneous


class Doubled(nn.Module):
    def forward(self, b: Tensor) -> Tensor:
        return 2 * b


def test_a_parametrised_bias_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(net[0], "bias", Doubled())
    text = (
        "the bias of module '0' is computed from other parameters. Remove that first: "
        "torch.nn.utils.parametrize.remove_parametrizations."
    )
    with pytest.raises(ModelError, match=text):
        convert(net)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_cannot_be_copied_is_refused() -> None:
    net = nn.utils.weight_norm(nn.Linear(3, 3))
    with pytest.raises(
        ModelError, match=r"the model cannot be copied \(.*\)\. .*weight_norm can\."
    ):
        convert(net)


def test_the_model_is_as_it_was_also_after_an_error() -> None:
    model = small_vit().train()
    model.blocks.eval()
    before = fingerprint(model)
    with pytest.raises(InputError, match="the model cannot take an input of the shape"):
        convert(model, inputs=torch.zeros(1, 4, 64, 64))
    assert_same(before, fingerprint(model))
    with torch.no_grad():
        convert(model, stand_ins="all", inputs=images(64, torch.float32))
    assert_same(before, fingerprint(model))


def test_a_copy_of_a_copy() -> None:
    x = images(64, torch.float32)
    free = convert(small_vit().eval(), stand_ins="all", inputs=x)
    twin = copy.deepcopy(free)
    assert torch.equal(twin(x), free(x))
    twin.load_state_dict(free.state_dict())


# --- obstacles -----------------------------------------------------------------------------------


def test_obstacles_of_the_vision_transformer() -> None:
    found = obstacles(small_vit().train(), images(64, torch.float32))
    listed = {(o.module, o.what, o.stand_in) for o in found}
    for k in range(2):
        assert (f"blocks.{k}", "gelu()", "activations") in listed
        assert (f"blocks.{k}.norm1", "LayerNorm", "norms") in listed
        attention = (f"blocks.{k}.attention", "scaled_dot_product_attention()", "attention")
        assert attention in listed
    assert ("stem.1", "GELU", "activations") in listed
    assert ("", "parameter 'position'", None) in listed
    assert ("", "parameter 'class_token'", None) in listed
    assert len(found) == len(listed) == 2 * 4 + 2 + 1 + 2
    without = obstacles(small_vit())
    assert len(without) == 2 + 2 * 2 + 1 + 2


def test_an_obstacle_can_be_read() -> None:
    one = Obstacle("", "gelu()", "why", "activations")
    assert str(one) == "(model): gelu(): why [stand-in: 'activations']"
    assert str(Obstacle("a.b", "LSTM", "why")) == "a.b: LSTM: why"


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (nn.LSTM(2, 2), "LSTM"),
        (nn.GRUCell(2, 2), "GRUCell"),
        (nn.RNN(2, 2), "RNN"),
        (nn.LocalResponseNorm(3), "LocalResponseNorm"),
        (nn.LogSoftmax(1), "LogSoftmax"),
        (nn.BatchNorm1d(2), "BatchNorm1d"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_stand_in_is_listed(module: nn.Module, what: str) -> None:
    (found,) = obstacles(module)
    assert (found.what, found.stand_in) == (what, None)
    assert found.reason


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: F.layer_norm(x, (3,)), "layer_norm()"),
        (lambda x: F.normalize(x), "normalize()"),
        (lambda x: x.exp(), "exp()"),
        (lambda x: torch.logsumexp(x, 1), "logsumexp()"),
        (lambda x: x.clamp(min=0.1), "clamp()"),
        (lambda x: 1 - x, "add()"),
        (lambda x: torch.maximum(x, torch.ones(3)), "maximum()"),
        (lambda x: F.pad(x, (1, 1), value=2.0), "pad()"),
        (lambda x: x.masked_fill(x > 0, 3.0), "masked_fill()"),
    ],
)
def test_functions_without_a_stand_in_are_listed(function: Any, what: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    (found,) = obstacles(Net().eval(), torch.randn(2, 3))
    assert found.what.replace("sub", "add").replace("rsub", "add") == what
    assert found.stand_in is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(min=0),
        lambda x: F.pad(x, (1, 1)),
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: torch.cat([x, torch.zeros(2, 1)], 1),
        lambda x: x * 3 / 2,
        lambda x: torch.maximum(x, -x).abs().amax(1),
    ],
)
def test_what_adds_nothing_is_not_listed(function: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    assert obstacles(Net().eval(), torch.randn(2, 3)) == ()


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [torch.relu, "resnet18", None])
@pytest.mark.parametrize("function", [convert, obstacles])
def test_no_module(function: Any, model: Any) -> None:
    with pytest.raises(ModelError) as caught:
        function(model)
    assert (caught.value.argument, caught.value.expected) == ("model", "a torch.nn.Module")


def test_nothing_to_convert() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    with pytest.raises(ModelError) as error:
        convert(net)
    assert str(error.value) == (
        "there is nothing to convert: no bias and no BatchNorm is there; no stand-in was asked "
        "for. With inputs= added parameters are found as well. "
        "omenn.xdnn.check(model, inputs) tells whether the model is homogeneous, "
        "omenn.xdnn.obstacles(model) what keeps it from being so."
    )
    with pytest.raises(ModelError, match="no bias or added parameter and no BatchNorm is there, "
                       "and nothing that a stand-in is for"):  # fmt: skip
        convert(net, stand_ins="all", inputs=torch.ones(1, 3))
    with pytest.raises(ModelError, match="no bias is left; no stand-in"):
        convert(nn.Sequential(nn.BatchNorm1d(3)), "keep")


@pytest.mark.parametrize(
    ("options", "argument", "got", "expected"),
    [
        ({"norm": "scaled"}, "norm", "'scaled'", "fixup, scale, keep"),
        ({"norm": None}, "norm", "None", "fixup, scale, keep"),
        ({"stand_ins": ["gate"]}, "stand_ins", "'gate'", "activations, attention, gates, norms"),
        ({"stand_ins": 3}, "stand_ins", "3", "names of stand-ins"),
        ({"seed": 0.5}, "seed", "0.5", "an integer from"),
        ({"seed": 2**64}, "seed", str(2**64), "an integer from"),
    ],
)
def test_unknown_names(options: dict[str, Any], argument: str, got: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), **options)
    assert (caught.value.argument, caught.value.got) == (argument, got)
    assert caught.value.expected.startswith(expected)


def test_what_hides_its_operators_is_refused() -> None:
    with pytest.raises(ModelError, match="is not initialised"):
        convert(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ModelError, match="is on the meta device"):
        convert(nn.Linear(2, 2, device="meta"))


def test_the_package_offers_what_it_promises() -> None:
    from omenn import xdnn

    importlib.import_module("omenn.xdnn.conversion")  # must not take the place of the function
    assert callable(xdnn.convert)
    assert callable(xdnn.obstacles)
    for name in xdnn.__all__:
        assert getattr(xdnn, name) is not None
        assert name in dir(xdnn)
    with pytest.raises(AttributeError, match="has no attribute 'converted'"):
        _ = xdnn.converted
