"""What torch can be asked for, generated from torch itself: each function has a rule or a reason.

The table of reasons must not grow silently: what torch adds, and what loses its rule, fails here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import get_overridable_functions

from omenn.engine.operators.table import OPERATORS
from omenn.engine.operators.unruled import UNTOUCHED
from omenn.engine.trace import spelling

# Why a function has no rule, and needs none or can have none -> its names, in place or not.
WITHOUT: dict[str, str] = {
    "no float comes out: decisions, indices, numbers of Python": """
        __and__ __array__ __array_wrap__ __bool__ __complex__ __contains__ __dlpack__
        __dlpack_device__ __eq__ __float__ __format__ __ge__ __gt__ __iand__ __ilshift__
        __index__ __int__ __invert__ __ior__ __irshift__ __ixor__ __le__ __long__ __lshift__
        __lt__ __ne__ __nonzero__ __or__ __rand__ __repr__ __rlshift__ __ror__ __rrshift__
        __rshift__ __rxor__ __xor__ _sym_sqrt all allclose any argmax argmin argsort argwhere
        bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
        bitwise_xor bool bucketize byte char count_nonzero eq equal gcd ge greater greater_equal
        gt hash_tensor int int_repr isclose isfinite isin isinf isnan isneginf isposinf isreal
        item lcm le less less_equal linalg_matrix_rank logical_and logical_not logical_or
        logical_xor long lt ne nonzero nonzero_static not_equal numpy one_hot searchsorted short
        signbit sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum tolist unravel_index
    """,
    "shape, type, device or memory, no value": """
        __deepcopy__ __reduce_ex__ __setstate__ _autocast_to_full_precision
        _autocast_to_reduced_precision _clear_non_serializable_cached_data _is_view apply
        as_strided_copy autocast backward const_data_ptr data_ptr dim_order empty_like full_like
        get_device ipu is_conj is_distributed is_inference is_neg is_nonzero is_pinned
        is_same_size is_set_to is_shared is_signed map map2 module_load mtia ones_like
        pin_memory record_stream register_hook register_post_accumulate_grad_hook resize
        resize_as retain_grad set share_memory storage storage_offset storage_type
        untyped_storage view_as_complex_copy xpu zeros_like
    """,
    "random": """
        bernoulli binomial cauchy exponential fractional_max_pool2d
        fractional_max_pool2d_with_indices fractional_max_pool3d
        fractional_max_pool3d_with_indices geometric log_normal multinomial native_dropout
        normal poisson random uniform
    """,
    "a loss: explain the logits before it": """
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss
        cross_entropy ctc_loss gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss
        linear_cross_entropy margin_ranking_loss mse_loss multi_margin_loss
        multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss
        smooth_l1_loss soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss
    """,
    "a kernel of one backend, of sparse or of quantised tensors": """
        _coalesced_ _dimI _dimV _indices _nested_tensor_size _nested_tensor_storage_offsets
        _nested_tensor_strides _nnz _sparse_mask_projection _to_dense _values
        batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt
        batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_stats
        batch_norm_update_stats ccol_indices ccol_indices_copy coalesce col_indices
        col_indices_copy crow_indices crow_indices_copy dense_dim dequantize
        fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
        fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation
        fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation
        fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix
        fused_moving_avg_obs_fake_quant hsmm hspmm indices indices_copy is_coalesced
        miopen_batch_norm miopen_convolution miopen_convolution_add_relu miopen_convolution_relu
        miopen_convolution_transpose miopen_depthwise_convolution miopen_rnn q_per_channel_axis
        q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme
        quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic
        quantized_batch_norm quantized_gru_cell quantized_lstm_cell quantized_max_pool1d
        quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell
        quantized_rnn_tanh_cell resize_as_sparse row_indices row_indices_copy saddmm smm
        sparse_dim sparse_mask sparse_resize sparse_resize_and_clear sspaddmm to_dense to_mkldnn
        to_sparse values values_copy
    """,
    "a special function: omenn.rule(..., 'pointwise') where it is finite at zero": """
        i0 igamma igammac lgamma mvlgamma polygamma special_airy_ai special_bessel_j0
        special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
        special_chebyshev_polynomial_u special_chebyshev_polynomial_v
        special_chebyshev_polynomial_w special_gammainc special_gammaincc special_gammaln
        special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e
        special_i1 special_i1e special_laguerre_polynomial_l special_legendre_polynomial_p
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_multigammaln special_polygamma
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
        special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
        special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w
        special_spherical_bessel_j0 special_zeta
    """,
    "a factorisation or a determinant: no rule makes it linear": """
        cholesky cholesky_inverse corrcoef det geqrf linalg_cholesky linalg_cholesky_ex
        linalg_cond linalg_det linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
        linalg_householder_product linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex
        linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex
        linalg_lu_solve linalg_matrix_exp linalg_matrix_power linalg_qr linalg_slogdet
        linalg_solve_ex linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve
        linalg_vander lobpcg logdet lu lu_solve lu_unpack matrix_exp matrix_power orgqr ormqr
        pca_lowrank qr slogdet svd svd_lowrank triangular_solve
    """,
    "several steps at once: its parts have rules": """
        angle as_strided_scatter choose_qparams_optimized cumprod
        frexp histc histogram histogramdd
        index index_reduce native_batch_norm native_group_norm native_layer_norm native_norm
        nextafter norm_except_dim prod put slice_inverse unique
        unique_consecutive
    """,
}


def functions() -> Iterator[Callable[..., Any]]:
    """Every function of torch that a mode sees, but for the getters of attributes."""
    for group in get_overridable_functions().values():
        for func in group:
            # torch_geometric puts functions of its own over some, which call those of torch.
            own = (getattr(func, "__module__", None) or "torch").split(".")[0] in (
                "torch",
                "builtins",
            )
            if own and getattr(func, "__name__", "__get__") != "__get__":
                yield func


def name_of(func: Callable[..., Any]) -> str:
    name = func.__name__
    return name if name.startswith("_") else name.removesuffix("_")


def has_rule(func: Callable[..., Any]) -> bool:
    return spelling.spell(func) is not None or func in UNTOUCHED


def recorded() -> set[str]:
    """The names that the records say, of operators and of their spellings."""
    said = (name for op, record in OPERATORS.items() for name in (op, *record.names.split()))
    names = {name.removesuffix("_") for name in said}
    return names | {f"{home}_{name}" for home in ("linalg", "special", "fft") for name in names}


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="torch has other functions")
def test_every_function_has_a_rule_or_a_reason() -> None:
    reasons = [name for names in WITHOUT.values() for name in names.split()]
    assert len(reasons) == len(set(reasons))
    # A reason that a record has overtaken stays without harm: what has a rule has a case as well.
    assert {name_of(f) for f in functions() if not has_rule(f)} == set(reasons) - recorded()


def test_every_alias_has_the_rule_of_its_twin() -> None:
    """As the documentation of torch names them."""
    seen = 0
    for func in functions():
        told = re.match(r"\s*\S*.*\n+\s*Alias (?:for|of) :\w+:`~?([\w.]+)`", func.__doc__ or "")
        if told is None:
            continue
        twin: Any = torch
        for part in told[1].removeprefix("torch.").split("."):
            twin = getattr(twin, part, None)
        if twin is None or spelling.spell(twin) is None:
            continue
        seen += 1
        mine, its = spelling.spell(func), spelling.spell(twin)
        assert mine is not None, func
        assert mine.operator == its.operator, func  # pyright: ignore
    assert seen > 30
