"""``operator``: W(x) and b(x) of all outputs at once, as a matrix that is never stored.

NOTE [columns from rows] One backward pass of the frozen graph gives g(u) = Wᵀu. It is linear in u,
because the coefficients are held fixed, and made of differentiable operators. So its own backward
pass is its transpose: W v = ∂⟨g(u), v⟩/∂u, at any u. It is taken at a random one: a backward pass
may leave out what is zero in its gradient, and at this u only what is zero for all of them is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from omenn.check import choose, quoted, real, whole
from omenn.engine.dual import pulled
from omenn.engine.explain import PRODUCTS
from omenn.engine.segment import Span, check_name
from omenn.engine.svd import SVD, leading_triplets
from omenn.engine.trace.autograd_nodes import own_precision
from omenn.engine.trace.guards import alone
from omenn.errors import InputError, ModelError, reason
from omenn.explanation import TOLERANCES

Indices = int | slice | Sequence[int] | Tensor
Vectors = Any  # a torch tensor or a NumPy array; what comes back is of the same kind


@alone()
def operator(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    at: str | None = None,
    *,
    from_: str | None = None,
    to: str | None = None,
    output: Callable[[Any], Tensor] | str | int | None = None,
    products: str = "half",
    chunk: int = 1,
) -> Operator:
    """The frozen network at x as one linear operator: f(x) = W(x) x + b(x), for all outputs.

    W is not stored. The graphs of one frozen forward pass and of its backward pass are kept; a
    vector goes back through the one (Wᵀu) or forward through the other (W v), each at about the
    price of a gradient.

    Everything is flat: W has one row for each number of the output and one column for each
    number of the explained input, in the order of ``reshape(-1)``. A batch is one object, too: W
    is then block-diagonal where the samples are independent, so give a single sample for its
    block alone.

    Args:
        model, inputs: as in :func:`omenn.explain`, with one explained input; integer ids are
            explained at their embedding.
        at, from_: dotted name of the module whose output is the input x of the operator; two
            spellings of one thing. Default: the input of the model.
        to: dotted name of the module whose output is f. Default: the output of the model.
        output: where f is in a structured output: callable, key or index. A callable may choose
            rows: ``lambda z: z[:, [3, 7]]``.
        products: as in :func:`omenn.explain`.
        chunk: how many vectors travel together through the graph in blocks (``matmat``, ``rows``,
            ``svd``…). Memory grows with it; a GPU or a small network gains from 8 and more.

    Raises:
        InputError, TargetError, ModelError: what was given has no single operator.
        UnsupportedOperator: the model calls something that is not provably linear.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(1, 4)
        >>> with omenn.operator(net.eval(), x) as op:
        ...     assert op.shape == (3, 4) and op.exact
        ...     assert torch.allclose(op @ op.input + op.constant, net(x)[0], atol=1e-5)
        ...     w = op.to_dense()
        ...     assert torch.allclose(op.rmatvec(torch.ones(3)), w.sum(0), atol=1e-5)

    Source: arXiv 2412.02399 for W and b; the pass forward is the transpose of the pass back
    (the "double-backward trick", J. Townsend, 2017).
    """
    if at is not None and from_ is not None:
        raise InputError(
            f"at={quoted(at)} and from_={quoted(from_)} are two spellings of one argument. Give "
            "one of them."
        )
    choose("products", products, PRODUCTS)
    chunk = min(whole("chunk", chunk, 1), sys.maxsize)
    start, name = (at, "at") if from_ is None else (from_, "from_")
    check_name(model, name, start)
    check_name(model, "to", to)
    if to is not None and to == start:
        raise InputError(
            f"{name}={quoted(start)} and to={quoted(to)} are one module: W is the identity."
        )
    span = Span(model, inputs, start, to, output, products)
    return Operator(span, chunk)


class Operator:
    """W(x) and b(x) of a frozen network: a matrix known by its products with vectors.

    ==========================  =================================================================
    ``shape``                   (outputs, inputs), both counted flat
    ``input_shape``             shape of the explained input, for ``v.reshape(op.input_shape)``
    ``output_shape``            shape of the output
    ``dtype``                   NumPy's type of the vectors: float64, or float32 for all others
    ``input`` (inputs,)         x
    ``value`` (outputs,)        f(x)
    ``constant`` (outputs,)     b(x), carried through the graph like W x, not taken as f − W x
    ``residual`` (outputs,)     f − (W x + b), in double precision
    ``exact``                   the largest residual is within ``tolerance`` · (1 + Σ|C|) of its
                                output, back and forward agree there, and f(x) is the model's own
    ==========================  =================================================================

    Vectors are torch tensors of the operator's type and device, or NumPy arrays, which are
    converted; what comes back is of the same kind. With ``shape``, ``dtype``, ``matvec`` and
    ``rmatvec`` an operator can be handed to ``scipy.sparse.linalg`` as it is: ``svds(op, k=3)``,
    ``lsqr(op, b)``, ``aslinearoperator(op)``.

    The graphs stay in memory until ``close()``, the end of a ``with`` block, or the last
    reference.
    """

    def __init__(self, span: Span, chunk: int) -> None:
        found, dual, back = pulled(span)
        (leaf,) = span.inputs.leaves
        self._dtype = torch.float64 if torch.float64 in (leaf.dtype, found.dtype) else torch.float32
        self.dtype: Any = torch.empty(0, dtype=self._dtype).numpy().dtype
        self.input_shape, self.output_shape = tuple(leaf.shape), tuple(found.shape)
        self.shape = (found.numel(), leaf.numel())
        self.chunk, self.device, self.faithful = chunk, leaf.device, span.compare(span.output).kept
        self.tolerance = TOLERANCES.get(span.mode.coarsest or leaf.dtype, 1e-5)
        self.input = leaf.detach().reshape(-1).to(self._dtype, copy=True)
        self.value = found.detach().reshape(-1).to(self._dtype, copy=True)
        self._graph: tuple[Tensor, Tensor, Tensor, Tensor] | None = (leaf, found, dual, back[0])
        self.constant = self._constant(back[1:], dual)
        self._prove(span)

    def _constant(self, back: list[Tensor], dual: Tensor) -> Tensor:
        """b: every constant of the network, pushed forward to the outputs."""
        total = torch.zeros(self.shape[0], dtype=self._dtype, device=self.device)
        if not back:
            return total
        b = _pass(back, dual, [torch.ones_like(g) for g in back])
        return total + b.reshape(-1).to(self._dtype)

    def _prove(self, span: Span) -> None:
        """W x + b = f for all outputs; and back = forward where that is missed by most."""
        forward = self.matvec(self.input)
        self.residual = self.value.double() - forward.double() - self.constant.double()
        worst = int(self.residual.abs().argmax())
        row = self.rows(worst)[0].double() * self.input.double()
        apart = (row.sum() - forward[worst].double()).abs()
        magnitude = row.abs().sum() + self.constant[worst].abs().double()
        missed = torch.maximum(self.residual.abs().max(), apart)
        scale = span.scale(missed, magnitude, self.tolerance)
        self.exact = self.faithful and bool(missed <= self.tolerance * (scale + magnitude))

    # --- products --------------------------------------------------------------------------

    def matvec(self, v: Vectors) -> Vectors:
        """W v (outputs,), one pass forward: how the outputs move along v at fixed coefficients.

        ``v`` (inputs,) or (inputs, 1). Raises InputError for any other shape or type, NaN.
        """
        return self._vector(v, self.shape[1], self._push)

    def rmatvec(self, u: Vectors) -> Vectors:
        """Wᵀ u (inputs,), one pass back: the row of W for the sum of outputs weighted by u.

        ``u`` (outputs,) or (outputs, 1). Raises InputError for any other shape or type, NaN.
        """
        return self._vector(u, self.shape[0], self._pull)

    def matmat(self, v: Vectors) -> Vectors:
        """W V (outputs, K) for V (inputs, K), ``chunk`` columns at a time."""
        return self._block(v, self.shape[1], self._push)

    def rmatmat(self, u: Vectors) -> Vectors:
        """Wᵀ U (inputs, K) for U (outputs, K), ``chunk`` columns at a time."""
        return self._block(u, self.shape[0], self._pull)

    def __matmul__(self, v: Vectors) -> Vectors:
        return self.matvec(v) if getattr(v, "ndim", 1) == 1 else self.matmat(v)

    def _vector(self, v: Vectors, length: int, product: Callable[[Tensor], Tensor]) -> Vectors:
        t, leave = self._entered(v)
        if tuple(t.shape) not in ((length,), (length, 1)):
            raise InputError(
                f"a vector of the length {length} is needed here, but the shape {tuple(t.shape)} "
                f"was given; the operator is {self.shape[0]} × {self.shape[1]}. Flatten with "
                ".reshape(-1); for several columns use matmat or rmatmat."
            )
        return leave(product(t.reshape(1, -1)).reshape(-1, *t.shape[1:]))

    def _block(self, v: Vectors, length: int, product: Callable[[Tensor], Tensor]) -> Vectors:
        t, leave = self._entered(v)
        if t.ndim != 2 or t.shape[0] != length:
            raise InputError(
                f"a matrix of the shape ({length}, K) is needed here, but {tuple(t.shape)} was "
                f"given; the operator is {self.shape[0]} × {self.shape[1]}."
            )
        return leave(product(t.T).T)

    def _entered(self, v: Vectors) -> tuple[Tensor, Callable[[Tensor], Vectors]]:
        """``v`` as a tensor of the operator, and the way back to the kind of ``v``."""
        if isinstance(v, UninitializedParameter):
            raise InputError("the vector is not initialised: it has neither shape nor numbers.")
        if isinstance(v, Tensor):
            if v.dtype != self._dtype or v.device != self.device:
                raise InputError(
                    f"the vector is {str(v.dtype)[6:]} on {v.device}, the operator "
                    f"{str(self._dtype)[6:]} on {self.device}. Convert it with .to(op.input)."
                )
            if v.layout != torch.strided:
                raise InputError("the vector is sparse; give an ordinary tensor: v.to_dense().")
            return self._finite(v.detach()), lambda t: t
        if not hasattr(v, "__array__") or (array := v.__array__()).dtype.kind not in "fiu":
            kind = getattr(getattr(v, "dtype", None), "name", type(v).__name__)
            raise InputError(
                f"a vector of real numbers is needed, a torch tensor or a NumPy array, but {kind} "
                "was given."
            )
        t = torch.from_numpy(array.astype(self.dtype))
        return self._finite(t.to(self.device)), lambda t: t.cpu().numpy()

    @staticmethod
    def _finite(v: Tensor) -> Tensor:
        if count := int((~torch.isfinite(v)).sum()):
            raise InputError(f"the vector has {count} values that are NaN or infinite.")
        return v

    def _pull(self, u: Tensor) -> Tensor:
        leaf, end, _, _ = self._open()
        return self._through(end, leaf, u)

    def _push(self, v: Tensor) -> Tensor:
        _, _, dual, back = self._open()
        return self._through(back, dual, v)

    def _through(self, out: Tensor, wrt: Tensor, vectors: Tensor) -> Tensor:
        """One backward pass of ``out`` for each of ``vectors`` (K, out) → (K, wrt)."""
        made = [vectors.new_zeros(0, wrt.numel())]
        for part in vectors.split(self.chunk) if len(vectors) else ():
            grads = part.reshape(len(part), *out.shape).to(out.dtype)
            batched = len(part) > 1
            g = _pass([out], wrt, [grads if batched else grads[0]], batched)
            made.append(g.reshape(len(part), -1).to(self._dtype))
        return torch.cat(made)

    # --- blocks ----------------------------------------------------------------------------

    def rows(self, indices: Indices) -> Tensor:
        """Rows of W (K, inputs) for flat output indices: an int, slice, sequence or tensor."""
        return self._pull(self._basis(indices, self.shape[0], "output"))

    def columns(self, indices: Indices) -> Tensor:
        """Columns of W (outputs, K) for flat input indices: an int, slice, sequence or tensor."""
        return self._push(self._basis(indices, self.shape[1], "input")).T

    def _basis(self, indices: Indices, size: int, name: str) -> Tensor:
        """One-hot rows (K, size). They are as large as the block that is asked for."""
        given = list(indices) if isinstance(indices, range) else indices
        try:
            chosen = torch.arange(size)[given].reshape(-1)
        except Exception as error:  # what indexes may raise what it likes
            raise InputError(
                f"{quoted(indices)} does not choose from {size} {name}s, 0 to {size - 1}: "
                f"{reason(error)}."
            ) from error
        basis = torch.zeros(len(chosen), size, dtype=self._dtype, device=self.device)
        return basis.scatter_(1, chosen.unsqueeze(1).to(self.device), 1.0)

    def to_dense(self, *, limit: int = 2**27) -> Tensor:
        """W as a tensor (outputs, inputs), by its shorter side.

        Raises InputError where it has more than ``limit`` entries (default 2²⁷, 1 GiB in float64).
        """
        outputs, inputs = self.shape
        limit = whole("limit", limit, 0)
        if outputs * inputs > limit:
            size = outputs * inputs * self.input.element_size() / 2**30
            raise InputError(
                f"the dense matrix would have {outputs} × {inputs} = {outputs * inputs} entries, "
                f"{size:.3g} GiB, above the limit of {limit}. Use rows, columns or svd, or pass a "
                "higher limit=."
            )
        return self.rows(slice(None)) if outputs <= inputs else self.columns(slice(None))

    def svd(self, k: int, *, tolerance: float | None = None, rounds: int = 200) -> SVD:
        """The k leading singular triplets: W ≈ Σ σ_i u_i v_iᵀ, the best of rank k.

        ``left`` (outputs, k), ``values`` (k,), ``right`` (inputs, k). Signs are chosen such that
        ⟨v_i, x⟩ ≥ 0: u_i tells which outputs the direction raises for this input. By block
        Krylov iteration on ``matmat`` and ``rmatmat``, with 2k products a round.

        Args:
            k: how many, at most the shorter side.
            tolerance: on ‖W v − σ u‖ and ‖Wᵀu − σ v‖, relative to σ_1; default √ε of the type.
            rounds: give up after so many.

        Raises:
            InputError: k is out of range, or ``rounds`` did not suffice.
        """
        if tolerance is not None:
            tolerance = real("tolerance", tolerance, 0)
        found = leading_triplets(self, k, tolerance, whole("rounds", rounds, 1))
        sign = torch.where(self.input @ found.right < 0, -1.0, 1.0).to(self._dtype)
        return SVD(found.left * sign, found.values, found.right * sign)

    # --- life ------------------------------------------------------------------------------

    def _open(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._graph is None:
            raise ModelError(
                "this operator was closed and its graph freed; only its vectors remain. Make it "
                "anew with omenn.operator(...)."
            )
        return self._graph

    def close(self) -> None:
        """Frees the graph; the vectors stay, as they do in a copy (``copy``, ``pickle``)."""
        self._graph = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graph": None}  # a copy is closed

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ("exact" if self.exact else "NOT EXACT") + ", closed" * (self._graph is None)
        return (
            f"Operator({self.shape[0]} outputs × {self.shape[1]} inputs, {self.dtype.name}, "
            f"residual={float(self.residual.abs().max()):.1e}, {state})"
        )


def _pass(outs: list[Tensor], wrt: Tensor, grads: list[Tensor], batched: bool = False) -> Tensor:
    """∂⟨outs, grads⟩/∂wrt on a graph that is kept; with ``batched`` for each row of grads."""
    try:
        with own_precision(wrt):
            (g,) = torch.autograd.grad(
                outs, wrt, grads, True, allow_unused=True, is_grads_batched=batched
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if batched:
            remedy = "Pass chunk=1: an operator of the model cannot take several vectors at once."
        else:
            remedy = (
                "Use omenn.rows, which goes back alone, or begin at a later module with from_=."
            )
        raise ModelError(
            f"a vector cannot go through the model: {reason(error)}. {remedy}"
        ) from error
    return wrt.new_zeros((len(grads[0]) if batched else 1, *wrt.shape)) if g is None else g
