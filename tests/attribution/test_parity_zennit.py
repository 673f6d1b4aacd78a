"""The classic rules on a VGG and a ResNet against zennit, which merges batch norms by canonizers.

zennit has a stabiliser of its own in its rule of proportional shares, for sums and averages, where
omenn has none: here it is made small. Its versions before 1.0 leave out the ε of a batch norm when
they merge it, so that ε is made small, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import omenn

pytest.importorskip("zennit")
torchvision = pytest.importorskip("torchvision")

from zennit import rules  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.composites import LayerMapComposite  # noqa: E402
from zennit.layer import Sum  # noqa: E402
from zennit.torchvision import ResNetCanonizer, VGGCanonizer  # noqa: E402
from zennit.types import Activation, AvgPool, Convolution, Linear  # noqa: E402

STABILISER = 1e-6
RULES: dict[str, Callable[[], object]] = {
    "epsilon": lambda: rules.Epsilon(epsilon=STABILISER),
    "zplus": lambda: rules.ZPlus(stabilizer=STABILISER),
    "alpha1beta0": lambda: rules.AlphaBeta(alpha=1, beta=0, stabilizer=STABILISER),
    "gamma": lambda: rules.Gamma(gamma=0.25, stabilizer=STABILISER),
}


def small_vgg() -> nn.Module:
    vgg = torchvision.models.vgg
    features = vgg.make_layers([8, "M", 16, "M", 16, 24, "M"], batch_norm=True)
    net = vgg.VGG(features, num_classes=5, init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(24 * 49, 32), nn.ReLU(), nn.Linear(32, 5))
    return net


def small_resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    down = nn.Sequential(nn.Conv2d(12, 20, 1, stride=2, bias=False), nn.BatchNorm2d(20))
    stem = [nn.Conv2d(3, 12, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(12)]
    stem += [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks = [block(12, 12), block(12, 20, stride=2, downsample=down), block(20, 20)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))


MODELS = {"vgg": (small_vgg, VGGCanonizer), "resnet": (small_resnet, ResNetCanonizer)}


def network(name: str) -> nn.Module:
    """Untrained, with statistics, scales and biases that are not those of the start."""
    torch.manual_seed(1)
    net = MODELS[name][0]().double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 1e-12
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias, 0, 0.3)
    return net


def by_zennit(net: nn.Module, name: str, method: str, x: Tensor, target: int) -> Tensor:
    share = rules.Norm(stabilizer=1e-12)
    layers = [
        (Activation, rules.Pass()),
        (Sum, share),
        (AvgPool, share),
        (Convolution, RULES[method]()),
        (Linear, RULES[method]()),
    ]
    composite = LayerMapComposite(layers, canonizers=[MODELS[name][1]()])
    start = torch.zeros(1, 5).double()
    start[0, target] = net(x)[0, target].detach()
    with Gradient(copy.deepcopy(net), composite) as attributor:
        return attributor(x, start)[1].detach()


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_the_classic_rules_are_those_of_zennit(name: str, method: str) -> None:
    net, x = network(name), torch.randn(1, 3, 64, 64).double()
    expected = by_zennit(net, name, method, x, 2)
    found = omenn.explain(net, x, 2, method=method).contribution
    largest = float(expected.abs().amax())
    assert largest > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)
