"""The models of the exactness table, at small input sizes: exact in float64 and in float32."""

import pytest
import torch

import omenn
from experiments.zoo_models import CASES, cast

# The larger ones have a smaller relative among the others: ResNet-18, DeiT-S/16, SwinV2-T.
LARGE = {
    "VGG-11", "ResNet-50", "ConvNeXt-T", "ViT-B/16", "BEiT-B/16", "Swin-T", "MaxViT-T",
}  # fmt: skip
SMALL = {"MLP", "EVA-02-T/14", "LSTM classifier"}
MODELS = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in LARGE else [])
    for case in CASES
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", MODELS)
def test_exact_in_both_precisions(case):
    model, inputs = case.make(torch.float64, small=True)
    for dtype, fidelity in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, inputs = model.to(dtype), cast(inputs, dtype)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        certificate = omenn.certify(model, inputs, **case.options)
        # Llama's norms compute in float32 whatever the weights are; all others are held to 1e-9.
        tolerance = 1e-9 if dtype == torch.float64 and "Llama" not in case.name else 1e-5
        assert certificate.exact, str(certificate)
        assert float(certificate.relative.max()) <= tolerance
        assert certificate.fidelity <= fidelity
        assert not certificate.violations
        after = model.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_the_large_ones_are_there():
    assert {case.name for case in CASES} > LARGE


def test_constants_matter_in_these_models():
    """The perturbation works: without their constants most models would not be complete."""
    missing = 0
    for case in (c for c in CASES if c.name in SMALL):
        model, inputs = case.make(torch.float64, small=True)
        e = omenn.explain(model, inputs, **case.options)
        alone = e.contribution.reshape(len(e.output), -1).sum(1)
        missing += bool(((alone - e.output).abs() > 1e-3).all())
    assert missing == 3
