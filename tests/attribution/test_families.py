"""Every rule book on one network of each family: a finite map, not zero, the same in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets import draw, seeded
from omenn.models.sources import load
from products import spread

BOOKS = ["cp-lrp", "attnlrp", "reslrp", "abslrp", "epsilon", "zplus", "alpha1beta0", "gamma"]


class Family(NamedTuple):
    """A network with two samples to explain; ``target`` where its output is no row of classes."""

    net: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    target: Any = 1


def bundled(name: str) -> Callable[[], nn.Module]:
    return lambda: load(name).model.double()


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        timm = pytest.importorskip("timm")
        return shaken(timm.create_model(name, pretrained=False, num_classes=7, **options))

    return build


def from_transformers(name: str, **sizes: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        kind = getattr(transformers, name)
        return shaken(kind(kind.config_class(**sizes)))

    return build


def shaken(net: nn.Module) -> nn.Module:
    """In float64, with biases and scales that are not those of the start, which hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if t.is_floating_point() and (t.ndim < 2 or not t.any()):
            drawn = torch.rand(t.shape, generator=generator) * 0.2
            t.data += drawn if "var" in name else drawn - 0.1
    return net.double().eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 24, 2, batch_first=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def images(size: int) -> Callable[[], Tensor]:
    return lambda: draw(2, 3, size, size)


def ids() -> Tensor:
    return torch.tensor([[5, 17, 3, 44, 8, 20], [9, 2, 31, 31, 7, 1]])


def last(logits: Tensor) -> Tensor:
    return logits[:, -1, 5]


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2, "pad_token_id": 0}
GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
BERT = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 8, "num_labels": 3}

FAMILIES = {
    "birds-resnet": Family(bundled("birds-resnet"), images(64)),
    "birds-convnet": Family(bundled("birds-convnet"), images(64)),
    "birds-vit": Family(bundled("birds-vit"), images(64)),
    "resnet": Family(from_timm("resnet10t"), images(48)),
    "convnext": Family(from_timm("convnext_atto"), images(48)),
    "swin": Family(
        from_timm("swin_tiny_patch4_window7_224", img_size=64, embed_dim=24, depths=(2, 2, 1, 1)),
        images(64),
    ),
    "vit": Family(from_timm("vit_tiny_patch16_224", img_size=48, depth=3), images(48)),
    "class attention": Family(from_timm("cait_xxs24_224", img_size=48, depth=2), images(48)),
    "bert": Family(from_transformers("BertForSequenceClassification", **BERT), ids),
    "gpt2": Family(from_transformers("GPT2LMHeadModel", **GPT), ids, last),
    "llama": Family(from_transformers("LlamaForCausalLM", **LLAMA), ids, last),
    "lstm": Family(lambda: seeded(Recurrent()), lambda: draw(2, 5, 4)),
}


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, Any]:
    found = FAMILIES[request.param]
    torch.manual_seed(0)
    return found.net(), found.inputs(), found.target


# timm tells that a model is not pretrained for what it is given; transformers names its own future.
@pytest.mark.filterwarnings("ignore::UserWarning:timm", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("family", "method"), spread(FAMILIES, BOOKS, one_in=4), indirect=["family"]
)
def test_every_book_runs_on_every_family(family: tuple[nn.Module, Any, Any], method: str) -> None:
    net, inputs, target = family
    together = omenn.explain(net, inputs, target, method=method).matrix
    assert torch.isfinite(together).all()
    assert (together.flatten(1).abs().amax(1) > 0).all()
    alone = omenn.explain(net, inputs[1:], target, method=method).matrix
    bound = 1e-6 * float(alone.abs().amax())
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=bound)


@pytest.mark.parametrize("method", BOOKS)
def test_every_book_runs_on_a_graph(method: str) -> None:
    """A convolution over a graph, all nodes being one object, in operators of torch alone."""
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 0]])
    first, second = seeded(nn.Linear(4, 6)), seeded(nn.Linear(6, 3), seed=2)

    def gathered(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape).index_add(0, edges[1], x[edges[0]]) + x

    def net(x: Tensor) -> Tensor:
        return gathered(second(torch.relu(gathered(first(x)))))

    x = draw(6, 4)
    node = int(net(x).max(1).values.argmax())
    kind = int(net(x)[node].argmax())
    e = omenn.explain(net, x, lambda y: y[node, kind], method=method)
    assert torch.isfinite(e.matrix).all()
    near = {node, *edges[0][edges[1] == node].tolist()}
    near |= {int(k) for n in list(near) for k in edges[0][edges[1] == n]}
    far = [n for n in range(6) if n not in near]
    assert e.contribution.any()
    assert not e.contribution[far].any()


def test_every_book_runs_on_a_graph_of_torch_geometric() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = geometric.GCNConv(4, 8), geometric.GCNConv(8, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x, edges)), edges)

    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
    net, x = seeded(Graph()), draw(6, 4)
    node = int(net(x, edges).max(1).values.argmax())
    kind = int(net(x, edges)[node].argmax())
    for method in BOOKS:
        e = omenn.explain(net, (x, edges), lambda y: y[node, kind], method=method)
        matrix = e.matrix[0] if isinstance(e.matrix, tuple) else e.matrix
        assert torch.isfinite(matrix).all()
        assert matrix.any(), method
