"""The adapter: against Quantus called by hand, and against what each trap would have given."""

from __future__ import annotations

import gc
import random
import sys
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omenn.errors import InputError, MissingExtra, ModelError
from omenn.metrics.explainers import TRIVIAL, Explainer, explainer
from omenn.metrics.quantus import (
    METRICS,
    NO_NUMBER,
    NOT_OFFERED,
    RANDOMISED,
    quantus_metric,
)
from refusals import refused

np = pytest.importorskip("numpy")
quantus = pytest.importorskip("quantus")

OPTIONS: dict[str, dict[str, Any]] = {
    "FaithfulnessCorrelation": {"subset_size": 40, "nr_runs": 10},
    "FaithfulnessEstimate": {"features_in_step": 20},
    "MonotonicityCorrelation": {"features_in_step": 40, "nr_samples": 2},
    "Monotonicity": {"features_in_step": 40},
    "PixelFlipping": {"features_in_step": 40},
    "RegionPerturbation": {"patch_size": 4, "regions_evaluation": 5},
    "Selectivity": {"patch_size": 4},
    "SensitivityN": {"features_in_step": 40},
    "ROAD": {"percentages": [10, 50]},
    "Infidelity": {"n_perturb_samples": 1, "perturb_patch_sizes": [2]},
    "TopKIntersection": {"k": 40},
    "NonSensitivity": {},
    **{
        name: {"nr_samples": 2}
        for name in (
            "LocalLipschitzEstimate", "MaxSensitivity", "AvgSensitivity", "RelativeInputStability",
            "RelativeOutputStability", "RelativeRepresentationStability", "SmoothMPRT",
        )
    },
    "Continuity": {"nr_steps": 4},
}  # fmt: skip


OF_EACH_KIND = ["FaithfulnessEstimate", "PointingGame", "ROAD", "MPRT", "Complexity"]


def make(model: nn.Module) -> Explainer:
    return explainer(model, "omenn")


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 8, 4))
    return net.eval(), torch.rand(3, 3, 8, 10), torch.tensor([2, 0, 1])


def masks() -> Tensor:
    found = torch.zeros(3, 8, 10, dtype=torch.bool)
    found[:, 2:6, 3:8] = True
    return found


def ask(name: str, case: Any, explain: Any = None, **options: Any) -> Any:
    net, images, targets = case
    given = {"make": make, "masks": masks(), **OPTIONS.get(name, {}), **options}
    return quantus_metric(name, net, images, targets, explain or make(net), **given)


def by_hand(name: str, case: Any, **options: Any) -> Any:
    """The class of Quantus itself, on the same maps, without normalisation."""
    net, images, targets = case
    shared = {"normalise": False, "disable_warnings": True}
    if "return_aggregate" in quantus.__dict__[name].__init__.__code__.co_varnames:
        shared["return_aggregate"] = False
    maps = make(net)(images, targets).numpy()[:, None].copy()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        np.random.seed(0)
        return quantus.__dict__[name](**{**shared, **OPTIONS.get(name, {}), **options})(
            model=net,
            x_batch=images.numpy().copy(),
            y_batch=targets.numpy(),
            a_batch=maps,
            s_batch=masks().numpy()[:, None],
            explain_func=lambda model, inputs, targets: make(model)(
                torch.as_tensor(inputs).float(), torch.as_tensor(targets)
            ).numpy()[:, None],
        )


class TestEveryMetric:
    @pytest.mark.parametrize("name", [n for n in METRICS if n != "SensitivityN"])
    def test_gives_one_number_an_image_and_leaves_all_as_it_was(self, name: str, case: Any) -> None:
        net, images, targets = case
        given = [t.clone() for t in (images, targets, *net.state_dict().values())]
        randomness = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        area = quantus.helpers.utils.calculate_auc, quantus.explain
        found = ask(name, case)
        assert found.values.shape == (3,)
        assert found.values.dtype == torch.float64
        assert found.images == 3 - found.counted.get(NO_NUMBER, 0)
        assert name in found.name or found.name == "completeness"
        direction = quantus.__dict__[name].score_direction.value
        assert found.higher == (direction == "higher")
        now = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(now[0], randomness[0])
        assert now[1:] == randomness[1:]
        assert all(map(torch.equal, given, (images, targets, *net.state_dict().values())))
        assert not hasattr(np, "trapz")
        assert (quantus.helpers.utils.calculate_auc, quantus.explain) == area
        assert not any(m._forward_hooks or m.training for m in net.modules())

    @pytest.mark.parametrize(
        "name",
        [
            "FaithfulnessCorrelation", "FaithfulnessEstimate", "Infidelity", "MaxSensitivity",
            "LocalLipschitzEstimate", "RelevanceRankAccuracy", "RelevanceMassAccuracy", "AUC",
            "TopKIntersection", "Sparseness", "Complexity", "EffectiveComplexity", "Consistency",
            "Sufficiency", "Monotonicity", "MonotonicityCorrelation", "NonSensitivity",
        ],
    )  # fmt: skip
    def test_is_what_quantus_gives(self, name: str, case: Any) -> None:
        expected = np.asarray(by_hand(name, case), dtype=np.float64).tolist()
        assert ask(name, case).values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)

    def test_sensitivity_n_has_a_number_a_step_over_all_images(self, case: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = by_hand("SensitivityN", case)
        found = ask("SensitivityN", case, chunk=1)
        assert found.values.tolist() == pytest.approx(list(expected), abs=1e-4)

    @pytest.mark.parametrize(
        "name", ["FaithfulnessCorrelation", "MaxSensitivity", "ROAD", "EfficientMPRT"]
    )
    def test_seeds(self, name: str, case: Any) -> None:
        options = {"noise": 3.0} if name == "ROAD" else {}
        one, same = (ask(name, case, seed=1, **options).values for _ in range(2))
        assert torch.equal(one, same)
        if name not in ("EfficientMPRT", "ROAD"):  # its models have a seed of their own
            assert not torch.equal(one, ask(name, case, seed=2, **options).values)

    def test_names(self, case: Any) -> None:
        for name in ("sparseness", "Spar seness", "SPARSE-NESS"):
            assert ask(name, case).name == "quantus Sparseness"
        available = {
            c.__name__ for each in quantus.AVAILABLE_METRICS.values() for c in each.values()
        }
        assert available == {*METRICS, *NOT_OFFERED}


class TestWhatIsPutRight:
    def test_areas_without_trapz(self, case: Any) -> None:
        """Pixel flipping as the mean height of its curve, and IROF as Quantus would have it."""
        curves = np.asarray(by_hand("PixelFlipping", case))
        expected = [(sum(c) - (c[0] + c[-1]) / 2) / (len(c) - 1) for c in curves.tolist()]
        assert ask("PixelFlipping", case).values.tolist() == pytest.approx(expected, abs=1e-6)
        areas = ask("PixelFlipping", case, return_auc_per_sample=True).values
        assert areas.tolist() == pytest.approx([e * (curves.shape[1] - 1) for e in expected], 1e-5)

    def test_irof_takes_channels_and_each_image_alone(self, case: Any) -> None:
        net, images, targets = case
        whole = ask("IROF", case).values
        alone = quantus_metric("IROF", net, images[1:2], targets[1:2], make(net)).values
        torch.testing.assert_close(alone, whole[1:2])

    def test_normalisation_is_off_and_each_map_by_itself(self, case: Any) -> None:
        """A pixel counts from 1e-5, or from a 100 000th of the largest of its own map."""
        small = torch.full((3, 8, 10), 1e-7)
        small[0, 0, 0], small[1, 0, 0], small[2, 0, 0] = 1.0, 1e-3, 1e-4
        tiny: Explainer = lambda x, t: small  # noqa: E731
        assert ask("EffectiveComplexity", case, tiny).values.tolist() == [1, 1, 1]
        found = ask("EffectiveComplexity", case, tiny, normalise=True).values
        assert found.tolist() == [1, 80, 80]

    @pytest.mark.parametrize(
        "name", ["FaithfulnessEstimate", "PointingGame", "ROAD", "MPRT", "Complexity"]
    )
    def test_maps_that_are_negative_or_constant_are_let_through(self, name: str, case: Any) -> None:
        negative = ask(name, case, lambda x, t: -1 - x[:, 0])
        assert negative.images == 3
        constant = ask(name, case, TRIVIAL["constant"])
        assert constant.counted["constant maps"] == 3
        assert constant.images + constant.counted.get(NO_NUMBER, 0) == 3

    def test_a_constant_map_leaves_the_correlations_of_others_alone(self, case: Any) -> None:
        maps = make(case[0])(*case[1:])
        one = maps.clone()
        one[1] = 2.0
        whole, rest = (
            ask("MonotonicityCorrelation", case, lambda x, t, m=m: m) for m in (maps, one)
        )
        assert rest.values.isnan().tolist() == [False, True, False]
        assert dict(rest.counted) == {"constant maps": 1, NO_NUMBER: 1}
        torch.testing.assert_close(rest.values[::2], whole.values[::2])

    def test_completeness_has_a_tolerance(self, case: Any) -> None:
        assert ask("Completeness", case).values.tolist() == [1, 1, 1]
        assert ask("Completeness", case, fill="mean").values.tolist() == [0, 0, 0]

    def test_channels_are_summed(self, case: Any) -> None:
        maps = torch.randn(3, 3, 8, 10)
        for name in ("Infidelity", "EffectiveComplexity"):
            whole = ask(name, case, lambda x, t: maps).values
            summed = ask(name, case, lambda x, t: maps.sum(1)).values
            torch.testing.assert_close(whole, summed)

    def test_the_mean_over_layers_leaves_out_the_original(self, case: Any) -> None:
        layers = by_hand("MPRT", case)
        assert layers.pop("original") == pytest.approx([1, 1, 1])
        assert len(layers) == 2
        expected = np.mean(list(layers.values()), axis=0).tolist()
        assert ask("MPRT", case).values.tolist() == pytest.approx(expected, abs=1e-6)

    def test_smooth_randomisation_uses_the_maps_that_are_given(self, case: Any) -> None:
        """Maps that know no model are the same for every model; captum's would not be."""
        blind = lambda model: TRIVIAL["centre"]  # noqa: E731
        found = ask("SmoothMPRT", case, TRIVIAL["centre"], make=blind)
        assert found.values.tolist() == pytest.approx([1, 1, 1])

    def test_random_models_are_explained_by_their_own_maps(self, case: Any) -> None:
        net = case[0]
        seen: list[bool] = []

        def watched(model: nn.Module) -> Explainer:
            seen.append(model is net or torch.equal(model[0].weight, net[0].weight))  # type: ignore[index]
            return make(model)

        ask("MPRT", case, make=watched)
        assert seen == [True, False]  # the last layer alone, then the first as well

    def test_the_other_class_is_one_of_the_model(self, case: Any) -> None:
        seen: list[Tensor] = []

        def explain(x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return make(case[0])(x, t)

        ask("RandomLogit", case, explain)
        assert int(torch.cat(seen).max()) <= 3

    def test_a_softmax_inside_is_no_end(self) -> None:
        """Quantus takes the softmax that is listed last for the model's end, and removes it."""

        class Listed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(12, 3)
                self.attention = nn.Softmax(1)

            def forward(self, x: Tensor) -> Tensor:
                return 5 * self.head(self.attention(3 * x.flatten(1)))

        net, images, targets = Listed().eval(), torch.rand(2, 1, 3, 4), torch.tensor([0, 2])
        maps = torch.randn(2, 3, 4)
        found = quantus_metric("FaithfulnessEstimate", net, images, targets, lambda x, t: maps)
        drops, sums = [], []
        order = maps.flatten(1).argsort(1, descending=True)
        before = net(images).gather(1, targets[:, None])[:, 0]
        for step in range(12):
            changed = images.flatten(1).clone()
            place = order[:, step : step + 1]
            changed.scatter_(1, place, images.flatten(1).amin(1, keepdim=True))
            after = net(changed.view_as(images)).gather(1, targets[:, None])[:, 0]
            drops.append((before - after).detach())
            sums.append(maps.flatten(1).gather(1, place)[:, 0])
        pairs = torch.stack([torch.stack(sums, 1), torch.stack(drops, 1)], 1)
        expected = [float(torch.corrcoef(p)[0, 1]) for p in pairs]
        assert found.values.tolist() == pytest.approx(expected, abs=1e-4)

    def test_double_models_and_functions(self, case: Any) -> None:
        net, images, targets = case
        plain = ask("FaithfulnessEstimate", case)
        deep = (net.double(), images.double(), targets)
        found = ask("FaithfulnessEstimate", deep)
        torch.testing.assert_close(found.values, plain.values, atol=1e-4, rtol=0)
        function = lambda x: net(x)  # noqa: E731
        given = quantus_metric(
            "FaithfulnessEstimate", function, *deep[1:], make(net), features_in_step=20
        )
        torch.testing.assert_close(given.values, found.values)

    def test_models_do_not_stay_in_memory(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
        there = weakref.ref(net)
        fixed: Explainer = lambda x, t: torch.arange(12.0).view(1, 3, 4)  # noqa: E731
        quantus_metric("PixelFlipping", net, torch.rand(1, 1, 3, 4), 0, fixed)
        del net
        gc.collect()
        assert there() is None


class TestErrors:
    def test_names(self, case: Any) -> None:
        with pytest.raises(InputError, match="unknown metric of Quantus 'Sparsness': did you"):
            ask("Sparsness", case)
        with pytest.raises(InputError, match="quantus:Focus' is not offered: it needs"):
            ask("Focus", case)
        with pytest.raises(InputError, match="Input Invariance' is not offered: it shifts"):
            ask("Input Invariance", case)

    def test_options(self, case: Any) -> None:
        text = "unknown option of PixelFlipping 'features_in_steps': did you mean 'features_in_st"
        with pytest.raises(InputError, match=text):
            ask("PixelFlipping", case, features_in_steps=3)
        with refused("features_in_step", "4"):
            ask("NonSensitivity", case, features_in_step=4)
        with refused("tolerance", "2"):
            ask("Completeness", case, tolerance=2)
        with pytest.raises(InputError, match=r"Quantus cannot compute PixelFlipping here: Set 'f"):
            ask("PixelFlipping", case, features_in_step=7)

    @pytest.mark.parametrize("name", RANDOMISED)
    def test_random_models_need_a_maker(self, name: str, case: Any) -> None:
        with pytest.raises(InputError, match=f"{name} explains models with other.*Give make="):
            ask(name, case, make=None)

    def test_localisation_needs_masks(self, case: Any) -> None:
        text = r"PointingGame needs masks of the objects, \(B, H, W\) = \(3, 8, 10\), got none"
        with pytest.raises(InputError, match=text):
            ask("PointingGame", case, masks=None)
        with pytest.raises(InputError, match=r"AUC needs masks .*, got \(3, 10, 8\)"):
            ask("AUC", case, masks=masks().mT)

    def test_maps_and_models(self, case: Any) -> None:
        net, images, targets = case
        with pytest.raises(InputError, match=r"\(3, 10, 8\) do not fit images"):
            ask("Sparseness", case, lambda x, t: x[:, 0].mT)
        with pytest.raises(InputError, match="3 of 3 maps are not finite"):
            ask("Sparseness", case, lambda x, t: x[:, 0] / 0)
        with pytest.raises(ModelError, match=r"training mode. Call model.eval\(\)"):
            ask("Sparseness", (net.train(), images, targets))

    def test_an_error_leaves_nothing_behind(self, case: Any) -> None:
        net = case[0]
        randomness = torch.get_rng_state(), np.random.get_state()[1].tolist()
        asserts, explain = quantus.helpers.asserts.assert_attributions, quantus.explain
        calls: list[int] = []

        def late(x: Tensor, t: Tensor) -> Tensor:
            calls.append(1)
            return make(net)(x, t) if len(calls) == 1 else x[:, 0, :3]

        with pytest.raises(InputError, match="do not fit images"):
            ask("MaxSensitivity", case, late)
        with pytest.raises(InputError, match="Quantus cannot compute RelativeRepresentationStab"):
            ask("RelativeRepresentationStability", case, layer_names=["nothing"])
        assert torch.equal(torch.get_rng_state(), randomness[0])
        assert np.random.get_state()[1].tolist() == randomness[1]
        assert quantus.helpers.asserts.assert_attributions is asserts
        assert quantus.explain is explain
        assert not any(m._forward_hooks for m in net.modules())
        assert ask("Sparseness", case).images == 3  # the lock is free

    def test_without_quantus(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "quantus", None)
        text = r"'quantus:Sparseness' needs the package 'quantus'.*pip install 'omenn\[bench\]'"
        with pytest.raises(MissingExtra, match=text):
            ask("Sparseness", case)
        assert ask("Completeness", case).images == 3
