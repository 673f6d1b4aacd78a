"""W(x) and b(x) as a map, not as a sum: held to a replay of the frozen network elsewhere.

That the entries add up to the logit says nothing of a constant that is none, or of an entry at the
wrong pixel. Here f_frozen(x′) = ⟨w_c(x), x′⟩ + b_c(x) is compared for other inputs x′.
"""

from __future__ import annotations

import pytest
import torch

import omenn
from experiments.zoo_models import perturb
from replay import Replay

MODELS = (
    "test_vit",
    "test_convnext",
    "test_resnet",
    "test_efficientnet",
    "test_mambaout",
    "test_byobnet",
    "mobilenetv3_small_050",
    "swin_tiny_patch4_window7_224",
    "ese_vovnet19b_slim_dw",
    "pvt_v2_b0",
    "starnet_s050",
    "gmlp_ti16_224",
    "resmlp_12_224",
)


@pytest.mark.parametrize("name", MODELS)
def test_the_map_holds_at_other_inputs(name: str) -> None:
    import timm

    sized = {"img_size": 56, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 32}
    options = sized if "swin" in name else {}
    side = 56 if "swin" in name else 64
    if name in ("test_vit", "gmlp_ti16_224", "resmlp_12_224"):
        options = {"img_size": 64}
    model = perturb(timm.create_model(name, pretrained=False, num_classes=7, **options)).double()
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    e = omenn.explain(model, x, target=3, bias="separate")
    replay = Replay()
    assert torch.allclose(replay.record(model, x)[0, 3], e.output[0], atol=1e-10)
    for other in (2 * x, torch.zeros_like(x), torch.randn_like(x)):
        there = (e.weight * other).sum() + e.bias.sum()
        again = replay.replay(model, other)[0, 3]
        assert abs(float(there - again)) <= 1e-9 * (1 + float(e.magnitude))
    elsewhere = model(torch.randn_like(x)).detach()[
        0, 3
    ]  # the ordinary network is another function
    assert abs(float(elsewhere - e.output[0])) > 1e-6


class Hidden(torch.nn.Module):
    """Half of it is hidden from the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            hidden = torch.relu(x.detach()).mean()
        return self.layer(x) + hidden * torch.ones(4, dtype=x.dtype)


def test_the_replay_sees_what_the_sum_does_not() -> None:
    """Taken for a constant, the hidden half would leave the sum right. The engine refuses it."""
    model, x = Hidden().eval(), torch.randn(1, 6, dtype=torch.float64)
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(model, x, target=3)
    weight = model.layer.weight[3].detach()
    bias = model(x)[0, 3].detach() - weight @ x[0]
    replay = Replay()
    replay.record(model, x)
    there, again = 3 * weight @ x[0] + bias, replay.replay(model, 3 * x)[0, 3]
    assert abs(float(there - again.detach())) > 1e-3
