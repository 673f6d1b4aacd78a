"""Layout that is made of other layout, frames and strided views, linear systems, copies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import held, selected

X, Y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
ROW, SQUARE = draw(4, seed=3), draw(4, 4, seed=5)
SIGNAL, WINDOW = draw(2, 24), torch.hann_window(8, dtype=torch.float64)
STABLE = SQUARE + 3 * torch.eye(4).double()


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z)


FRAMES: list[Case] = [
    *table("stft", {
        "function": lambda x: real(torch.stft(x, 8, 4, window=WINDOW, return_complex=True)),
        "method": lambda x: real(x.stft(8, 3, 6, WINDOW[:6], center=False, return_complex=True)),
        "two sided": lambda x: real(torch.stft(
            x, 8, window=WINDOW, onesided=False, normalized=True, return_complex=True)),
        "keyword": lambda x: real(torch.stft(input=x, n_fft=8, window=WINDOW, pad_mode="constant",
                                             return_complex=True)),
    }, SIGNAL),
    *table("istft", {
        "function": lambda x: torch.istft(torch.complex(x, x.flip(1)), 8, 4, window=WINDOW),
        "method": lambda x: torch.complex(x, x.flip(1)).istft(8, 4, window=WINDOW, length=15),
    }, draw(2, 5, 6)),
    *table("as_strided", {
        "function": lambda x: torch.as_strided(x, (2, 5, 8), (24, 4, 1)),
        "method": lambda x: x.as_strided((2, 4, 3), (24, 6, 2), 1),
        "of a view": lambda x: x[:, ::2].as_strided((2, 4, 3), (24, 6, 2)),
    }, SIGNAL),
    *table("as_strided", {
        "written into": lambda x: torch.relu_(x.clone().as_strided((2, 4, 3), (24, 6, 2))),
    }, SIGNAL, oracle=held(lambda z, x: (z[0] * (x[0] > 0)).reshape(2, 4, 6)[..., ::2])),
]  # fmt: skip


def between(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
    """The quantile 0.3 of four: a tenth from the first to the second in order, whence 0.9 of it."""
    order = x[0].argsort(-1)
    first, second = (z[0].gather(-1, order[..., k : k + 1]).squeeze(-1) for k in (0, 1))
    return first + 0.9 * (second - first)


LAYOUT: list[Case] = [
    *table("broadcast_tensors", {
        "last": lambda x: torch.broadcast_tensors(ROW, x[:, :1], torch.ones(2, 3, 1))[1],
        "list": lambda x: torch.broadcast_tensors(*[x, torch.zeros(2, 3, 4)])[0] * 2,
    }, X),
    *table("meshgrid", {
        "ij": lambda x, y: torch.stack(torch.meshgrid(x, y, indexing="ij")),
        "xy": lambda x, y: torch.stack(torch.meshgrid(x, y, indexing="xy")),
        "list": lambda x, y: torch.stack(torch.meshgrid([x, y, ROW], indexing="xy")),
        "one": lambda x, y: torch.meshgrid(x, indexing="xy")[0] + y.sum(),
    }, ROW, draw(3), samples=False),
    *table("cartesian_prod", {"two": torch.cartesian_prod,
                              "one": lambda x, y: torch.cartesian_prod(x) + y.sum()},
           ROW, draw(3), samples=False),
    *table("combinations", {
        "pairs": torch.combinations, "three": lambda x: torch.combinations(x, 3),
        "again": lambda x: torch.combinations(x, 2, True)}, ROW, samples=False),
    *table("block_diag", {"two": lambda x, y: torch.block_diag(x, y, ROW)}, draw(2, 3), draw(2, 2),
           samples=False),
    *table("column_stack", {"two": lambda x, y: torch.column_stack((x, y, SQUARE))},
           ROW, draw(4, 2), samples=False),
    *table("vstack", {"row_stack": lambda x, y: torch.row_stack((x, y))}, ROW, draw(2, 4),
           samples=False),
    *table("diag", {"vector": torch.diag, "T": lambda x: x.diag(1)}, ROW, samples=False),
    *table("diag", {"matrix": lambda x: torch.diag(x, -1)}, draw(3, 4), samples=False),
    *table("diagflat", {"torch": torch.diagflat, "T": lambda x: x.diagflat(-1)}, draw(2, 2),
           samples=False),
    *table("sum_to_size", {"T": lambda x: x.sum_to_size(3, 1), "tuple": lambda x: x.sum_to_size(
        (2, 1, 4)).sum_to_size([2, 1, 4])}, X, samples=False),
    *table("msort", {"torch": torch.msort, "T": lambda x: x.msort()}, X, oracle=selected,
           samples=False),
    *table("fill_diagonal_", {"T": lambda x: x.fill_diagonal_(2.5),
                              "wrap": lambda x: (x + 1).fill_diagonal_(-1, wrap=True)},
           draw(5, 3), samples=False),
    *table("flip", {"T.__reversed__": lambda x: Tensor.__reversed__(x)}, X, samples=False),
    *table("tensor", {"of a tensor": lambda x: quietly(torch.tensor, x),
                      "of numbers": lambda x: torch.tensor(
                          [[x[0, 0, 0], 2.0], [x[1, 0, 0], x[0, 0, 1]]])},
           X, samples=False),
    *table("new_tensor", {"T": lambda x: quietly(torch.ones(1).double().new_tensor, x) + x,
                          "numbers": lambda x: x.new_tensor([x[0, 0, 0], x[1, 1, 1]])}, X,
           samples=False),
    *table("as_tensor", {"same": lambda x: torch.as_tensor(x) * 2,
                         "asarray": lambda x: torch.asarray(x, dtype=torch.float64) * 2,
                         "complex": lambda x: torch.as_tensor(x, dtype=torch.complex128).real,
                         "numbers": lambda x: torch.as_tensor([x[0, 0, 0], x[1, 1, 1]])}, X,
           samples=False),
    *table("to", {"cdouble": lambda x: x.cdouble().real}, X),
    *table("to", {"cfloat": lambda x: x.cfloat().real.double()}, SIGNAL.float().double(),
           tolerance=1e-6),
    *table("trapezoid", {"torch": lambda x: torch.trapezoid(x, dim=1),
                         "trapz": lambda x: torch.trapz(x, ROW.sort().values)}, X),
    *table("cumulative_trapezoid", {"torch": lambda x: torch.cumulative_trapezoid(x, dx=0.5)}, X),
    *table("gradient", {"torch": lambda x: torch.gradient(x, dim=(1,))[0],
                        "spacing": lambda x: torch.gradient(x, spacing=0.5, dim=2)[0]}, X),
    *table("quantile", {"torch": lambda x: torch.quantile(x, 0.3, 2),
                        "T": lambda x: x.quantile(0.3, dim=2),
                        "nan": lambda x: torch.nanquantile(x, 0.3, 2),
                        "T nan": lambda x: x.nanquantile(0.3, 2)}, X, oracle=held(between)),
    *table("mode", {"torch": lambda x: torch.mode(x, 1)[0], "T": lambda x: x.mode(1)[0]}, X,
           oracle=selected),
    *table("sum", {"nansum": lambda x: torch.nansum(x, 1), "T.nansum": lambda x: x.nansum(1)}, X),
    *table("pad", {"constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 2), 0.5)}, X),
    *table("split", {
        "torch.unsafe_split_with_sizes": lambda x: torch.unsafe_split_with_sizes(x, [1, 3], 2)[1],
        "T.unsafe_split_with_sizes": lambda x: x.unsafe_split_with_sizes([1, 3], 2)[0],
    }, X),
]  # fmt: skip


def quietly(make, x: Tensor) -> Tensor:
    """A copy of a tensor, without torch's advice to use clone()."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(x)


COPIES: list[Case] = [
    *table("clone", {"alias_copy": torch.alias_copy}, X),
    *table("detach", {"copy": torch.detach_copy}, X),
    *table("diagonal", {"copy": lambda x: torch.diagonal_copy(x, 0, 1, 2)}, X),
    *table("expand", {"copy": lambda x: torch.expand_copy(x, (2, 3, 4))}, draw(2, 1, 4)),
    *table("narrow", {"copy": lambda x: torch.narrow_copy(x, 1, 1, 2),
                      "T copy": lambda x: x.narrow_copy(1, 0, 1),
                      "slice_copy": lambda x: torch.slice_copy(x, 1, 0, 3, 2)}, X),
    *table("permute", {"copy": lambda x: torch.permute_copy(x, (0, 2, 1))}, X),
    *table("select", {"copy": lambda x: torch.select_copy(x, 1, 1)}, X),
    *table("split", {"copy": lambda x: torch.split_copy(x, 2, 2)[1],
                     "with sizes copy": lambda x: torch.split_with_sizes_copy(x, [1, 3], 2)[1]}, X),
    *table("squeeze", {"copy": torch.squeeze_copy}, draw(2, 1, 4)),
    *table("t", {"copy": torch.t_copy}, draw(3, 4), samples=False),
    *table("transpose", {"copy": lambda x: torch.transpose_copy(x, 1, 2)}, X),
    *table("unbind", {"copy": lambda x: torch.unbind_copy(x, 1)[2]}, X),
    *table("unfold", {"copy": lambda x: torch.unfold_copy(x, 2, 2, 1)}, X),
    *table("unsqueeze", {"copy": lambda x: torch.unsqueeze_copy(x, 1)}, X),
    *table("view", {"copy": lambda x: torch.view_copy(x, (2, 12))}, X),
    *table("view_as_real", {"copies": lambda x: torch.view_as_real_copy(
        torch.view_as_complex(x))}, draw(2, 3, 2)),
]  # fmt: skip

TRIANGLE = torch.eye(4).double() * 3 + SQUARE.tril(-1)
RIGHT = draw(2, 4, 3)


def inverted(matrix, right):
    return torch.linalg.inv(matrix) @ right


SYSTEMS: list[Case] = [
    *table("solve_triangular", {
        "left": lambda b: torch.linalg.solve_triangular(TRIANGLE, b, upper=False),
        "unit": lambda b: torch.linalg.solve_triangular(TRIANGLE, b, upper=False,
                                                        unitriangular=True),
        "upper": lambda b: torch.linalg.solve_triangular(TRIANGLE.mT, b, upper=True),
        "right": lambda b: torch.linalg.solve_triangular(
            TRIANGLE[:3, :3], b, upper=False, left=False),
    }, RIGHT),
    *table("solve_triangular", {
        "both": lambda a, b: torch.linalg.solve_triangular(a.tril(), b, upper=False)
    }, STABLE.expand(2, 4, 4).clone(), RIGHT, oracle=held(
        lambda z, x: inverted(x[0].tril(), z[1]))),
    *table("solve_triangular", {
        "matrix": lambda a, b: torch.linalg.solve_triangular(
            a.tril(), torch.eye(4).double(), upper=False) @ b
    }, STABLE.expand(2, 4, 4).clone(), RIGHT, oracle=held(
        lambda z, x: inverted(x[0].tril(), z[1]))),
    *table("solve", {"matrix": lambda b: torch.linalg.solve(STABLE, b),
                     "right": lambda b: torch.linalg.solve(STABLE[:3, :3], b, left=False)}, RIGHT),
    *table("solve", {"vector": lambda b: torch.linalg.solve(STABLE, b)}, ROW, samples=False),
    *table("solve", {"vectors": lambda b: torch.linalg.solve(STABLE.expand(2, 4, 4), b)},
           draw(2, 4)),
    *table("cholesky_solve", {
        "torch": lambda b: torch.cholesky_solve(b, TRIANGLE),
        "T": lambda b: b.cholesky_solve(TRIANGLE.mT, upper=True),
    }, RIGHT),
    *(Case("inv", name, lambda a, b, f=f: f(a) @ b, (STABLE.expand(2, 4, 4).clone(), RIGHT),
           held(lambda z, x: inverted(x[0], z[1])))
      for name, f in (("linalg", torch.linalg.inv), ("torch", torch.inverse),
                      ("T", lambda a: a.inverse()))),
    *(Case("pinv", name, lambda a, b, f=f: f(a) @ b, (STABLE.expand(2, 4, 4).clone(), RIGHT),
           held(lambda z, x: inverted(x[0], z[1])), tolerance=1e-9)
      for name, f in (("linalg", torch.linalg.pinv), ("torch", torch.pinverse),
                      ("T", lambda a: a.pinverse()))),
]  # fmt: skip


def power_mean(power: float, size: int, pool):
    """(size · mean of x^p)^(1/p) as ⟦y^(1/p)/y⟧ · size · mean of ⟦x^(p−1)⟧ x."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        total = pool(x[0] ** power) * size
        return total ** (1 / power - 1) * pool(x[0] ** (power - 1) * z[0]) * size

    return held(g)


HERMITIAN: list[Case] = [
    *(Case("fourier", name, lambda x, f=f: f(torch.complex(x, x.flip(1))), (draw(2, 4, 5),))
      for name, f in (("hfft", torch.fft.hfft), ("hfft2", torch.fft.hfft2))),
    *(Case("fourier", name, lambda x, f=f: real(f(x).resolve_conj()), (draw(2, 4, 5),))
      for name, f in (("ihfft", torch.fft.ihfft), ("ihfft2", torch.fft.ihfft2))),
    Case("fourier", "hfftn", lambda x: torch.fft.hfftn(torch.complex(x, x.flip(1)), dim=(1, 2)),
         (draw(2, 4, 5),)),
    Case("fourier", "ihfftn", lambda x: real(torch.fft.ihfftn(x, dim=(1, 2))), (draw(2, 4, 5),)),
]  # fmt: skip

LAYERS: list[Case] = [
    *table("lp_pool1d", {"function": lambda x: F.lp_pool1d(x, 2, 2),
                         "module": nn.LPPool1d(2, 2)}, draw(2, 2, 6),
           oracle=power_mean(2, 2, lambda t: F.avg_pool1d(t, 2))),
    *table("lp_pool2d", {"function": lambda x: F.lp_pool2d(x, 3, 2),
                         "module": nn.LPPool2d(3, (2, 2))}, draw(2, 2, 4, 4, low=0.1),
           oracle=power_mean(3, 4, lambda t: F.avg_pool2d(t, 2))),
    *table("lp_pool3d", {"function": lambda x: F.lp_pool3d(x, 2, 2, stride=1)},
           draw(1, 2, 3, 3, 3), oracle=power_mean(2, 8, lambda t: F.avg_pool3d(t, 2, 1))),
    *table("conv_tbc", {"function": lambda x: F.conv_tbc(x, draw(2, 3, 5), ROW.repeat(2)[:5], 1)},
           draw(4, 2, 3), samples=False),
    *table("conv", {"torch.convolution": lambda x: torch.convolution(
        x, draw(3, 2, 2, 2), ROW[:3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)},
        draw(2, 2, 4, 4)),
    *(Case("grid_sample", f"torch.{name}", lambda x, f=f: f(
        x, draw(2, 3, 3, 2, low=-1, high=1), 0, 0, False), (draw(2, 2, 4, 4),))
      for name, f in (("grid_sampler", torch.grid_sampler),
                      ("grid_sampler_2d", torch.grid_sampler_2d))),
    *table("grid_sample", {"torch.grid_sampler_3d": lambda x: torch.grid_sampler_3d(
        x, draw(1, 2, 2, 2, 3, low=-1, high=1), 0, 0, False)}, draw(1, 2, 3, 3, 3)),
    *table("affine_grid", {"torch": lambda x: torch.affine_grid_generator(x, [2, 3, 3, 4], False)},
           draw(2, 2, 3)),
]  # fmt: skip

CASES = FRAMES + HERMITIAN + LAYOUT + COPIES + SYSTEMS + LAYERS
