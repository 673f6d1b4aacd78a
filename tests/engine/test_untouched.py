"""What an explanation leaves untouched, and what around it does not matter."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import IMAGE, ROWS, Two, convnet, mlp, sums_up
from omenn.engine.depth import levels_of
from omenn.engine.trace.tracer import Tracer
from opcases.case import draw
from opcases.linear import seeded

X = ROWS
LEFT = draw(2, 4)

# --- around the call -------------------------------------------------------------------------


def reference() -> Tensor:
    return omenn.explain(convnet(), IMAGE, 1).matrix


def test_under_no_grad() -> None:
    with torch.no_grad():
        got = omenn.explain(convnet(), IMAGE, 1).matrix
    torch.testing.assert_close(got, reference())
    assert torch.is_grad_enabled()


def test_under_inference_mode() -> None:
    net = convnet()
    with torch.inference_mode():
        e = omenn.explain(net, IMAGE, 1)
    torch.testing.assert_close(e.matrix, reference())


def test_input_made_under_inference_mode() -> None:
    with torch.inference_mode():
        x = IMAGE * 1
        assert omenn.explain(convnet(), x, 1).exact
    e = omenn.explain(convnet(), x, 1)
    torch.testing.assert_close(e.matrix, reference())


def test_model_made_under_inference_mode() -> None:
    with torch.inference_mode():
        net = convnet()
    e = omenn.explain(net, IMAGE, 1)
    torch.testing.assert_close(e.matrix, reference())


@pytest.mark.parametrize("how", ["no_grad", "decorator", "detach", "data", "inference"])
def test_model_that_turns_gradients_off_inside(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        @torch.no_grad()
        def decorated(self, x: Tensor) -> Tensor:
            return self.a(x)

        def forward(self, x: Tensor) -> Tensor:
            if how == "no_grad":
                with torch.no_grad():
                    x = self.a(x)
            elif how == "inference":
                with torch.inference_mode():
                    x = self.a(x)
            elif how == "decorator":
                x = self.decorated(x)
            elif how == "detach":
                x = self.a(x.detach()).detach()
            else:
                x = self.a(x).data
            return self.b(torch.relu(x))

    net = seeded(Net())
    plain = nn.Sequential(net.a, nn.ReLU(), net.b).eval()
    e = omenn.explain(net, X, 1)
    torch.testing.assert_close(e.matrix, omenn.explain(plain, X, 1).matrix)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("requires", [True, False])
def test_flags_of_parameters_do_not_matter(requires: bool) -> None:
    net = convnet().requires_grad_(requires)
    torch.testing.assert_close(omenn.explain(net, IMAGE, 1).matrix, reference())
    assert all(p.requires_grad is requires for p in net.parameters())
    assert all(p.grad is None for p in net.parameters())


def test_input_that_requires_gradients() -> None:
    x = IMAGE.clone().requires_grad_()
    e = omenn.explain(convnet(), x, 1)
    torch.testing.assert_close(e.matrix, reference())
    assert x.grad is None
    assert not e.matrix.requires_grad


def test_input_that_is_a_view_or_not_contiguous() -> None:
    x = IMAGE.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(omenn.explain(convnet(), x, 1).matrix, reference())


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fail = nn.Linear(4, 3), True

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.lgamma(y) if self.fail else y


def state_of(net: nn.Module) -> tuple:
    hooks = [dict(d) for m in net.modules() for d in (m._forward_hooks, m._forward_pre_hooks)]
    return (
        {k: v.clone() for k, v in net.state_dict().items()},
        [p.requires_grad for p in net.parameters()],
        [sorted(m.__dict__) for m in net.modules()],
        [sorted(t.__dict__) for t in (*net.parameters(), *net.buffers())],
        hooks,
        [m.training for m in net.modules()],
    )


def unchanged(before: tuple, after: tuple) -> None:
    assert before[1:] == after[1:]
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name


def test_model_and_input_are_left_as_they_were() -> None:
    net, x = convnet(), IMAGE.clone()
    before = state_of(net)
    for options in ({}, {"at": "3"}, {"bias": "separate"}, {"create_graph": True}):
        omenn.explain(net, x, 1, **options)
    omenn.certify(net, x)
    omenn.rows(net, x, [0, 1])
    unchanged(before, state_of(net))
    assert torch.equal(x, IMAGE)
    assert x.__dict__ == {}
    copy.deepcopy(net)


@pytest.mark.parametrize("options", [{}, {"at": "a"}])
def test_everything_is_left_as_it_was_after_an_exception(options: dict) -> None:
    net = seeded(Fails())
    before = state_of(net)
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(net, X, 0, **options)
    unchanged(before, state_of(net))
    assert torch.is_grad_enabled()
    assert not torch.overrides._get_current_function_mode_stack()
    net.fail = False
    assert omenn.explain(net, X, 0).exact


def test_model_that_writes_into_its_input() -> None:
    def model(x: Tensor) -> Tensor:
        x += 1
        x.mul_(2)
        return x.sum(1, keepdim=True)

    x = X.clone()
    e = omenn.explain(model, x, 0)
    assert torch.equal(x, X)
    torch.testing.assert_close(e.output, 2 * (X + 1).sum(1))
    sums_up(e)


def settings() -> tuple:
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), torch.backends.mha.get_fastpath_enabled(),
    )  # fmt: skip


def test_random_numbers_and_settings_are_left_alone() -> None:
    net, rows = convnet(), mlp()
    state, before = torch.get_rng_state(), settings()
    omenn.explain(net, IMAGE)
    omenn.certify(rows, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert settings() == before


def test_hooks_of_the_user_run_and_stay() -> None:
    net, seen = mlp(), []
    net[1].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    net[3].register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    e = omenn.explain(net, X, 1)
    assert seen == 2 * [(3, 6)]  # in the frozen pass, and in the ordinary one beside it
    torch.testing.assert_close(e.output, net(X)[:, 1].detach())
    sums_up(e)


def test_same_explanation_twice() -> None:
    net = convnet()
    a, b = omenn.explain(net, IMAGE, 1), omenn.explain(net, IMAGE, 1)
    assert torch.equal(a.matrix, b.matrix)
    assert torch.equal(a.weight, b.weight)


def test_threads_share_one_model() -> None:
    """Eight threads, inputs and depths of their own, on one model."""
    net = convnet()
    jobs = [(draw(2, 3, 6, 6, seed=k), [None, "2", "4"][k % 3], k % 3) for k in range(8)]
    wanted = [omenn.explain(net, x, t, at=at).matrix for x, at, t in jobs]
    got: list[Tensor | None] = [None] * len(jobs)
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(k: int) -> None:
        try:
            x, at, target = jobs[k]
            start.wait(timeout=30)
            for _ in range(3):
                got[k] = omenn.explain(net, x, target, at=at).matrix
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert not any(m._forward_hooks for m in net.modules())


def test_other_modes_may_be_active() -> None:
    """``torch.device`` as a context is a torch function mode too, outside or in the model."""
    net = convnet()
    with torch.device("cpu"):
        torch.testing.assert_close(omenn.explain(net, IMAGE, 1).matrix, reference())

    def model(x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return net(x + torch.zeros(1, dtype=x.dtype))

    torch.testing.assert_close(omenn.explain(model, IMAGE, 1).matrix, reference())


@pytest.mark.parametrize("products", ["half", "left", "right"])
def test_products_option(products: str) -> None:
    net = seeded(Two())
    e = omenn.explain(net, (LEFT, draw(2, 3)), 1, products=products)
    assert e.products == products
    sums_up(e)
    halves = omenn.explain(net, (LEFT, draw(2, 3)), 1)
    if products != "half":
        assert not torch.equal(e.weight[0], halves.weight[0])
    torch.testing.assert_close(e.output, halves.output)


def tracers() -> list[Tracer]:
    return [o for o in gc.get_objects() if type(o) is Tracer]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from torch's own lazy attributes
@pytest.mark.parametrize("options", [{}, {"at": "3"}, {"create_graph": True}])
def test_nothing_stays_in_memory(options: dict) -> None:
    """No reference cycles: a dropped explanation is freed at once, without the collector."""
    gc.collect()
    before = tracers()  # the traceback of a test that failed may hold some
    gc.disable()
    try:
        e = omenn.explain(convnet(), IMAGE, 1, **options)
        assert e.exact
        del e
        left = tracers()
    finally:
        gc.enable()
    assert left == before


def test_nothing_stays_in_memory_of_levels() -> None:
    gc.collect()
    before = tracers()
    assert levels_of(convnet(), IMAGE)
    gc.collect()
    assert tracers() == before
