"""What each operator of PyTorch costs in multiply-accumulates: a formula, nothing, or not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Matrices [..., M, K] and [..., K, N] of one batch."""
    return a.numel() * b.shape[-1]


def _added_product(_: Tensor, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return _product(a, b)


def _convolution(x: Tensor, weight: Tensor, *options: Any, out: Tensor, **named: Any) -> int:
    """x [B, I, ...], weight [O, I / groups, ...] or, transposed, [I, O / groups, ...]: each weight once a position."""
    transposed = named.get("transposed", len(options) > 4 and options[4])
    return (x if transposed else out).numel() * weight[0].numel()


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    a_new: list[int],
    b_new: list[int],
    c_new: list[int],
    *_: Any,
    **__: Any,
) -> int:
    """sum of a b c over all dimensions together, after new ones of size 1: once for each term of the sum."""
    sizes = []
    for tensor, dims in ((a, a_new), (b, b_new), (c, c_new)):
        size = list(tensor.shape)
        for dim in dims:
            size.insert(dim, 1)
        sizes.append(size)
    return math.prod(torch.broadcast_shapes(*sizes))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Query [..., L, E], key [..., S, E], value [..., S, F]: all scores, a causal mask or not, and their use."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _bag(weight: Tensor, ids: Tensor, *options: Any, **named: Any) -> int:
    """Sums of rows cost no multiplication unless each row has a factor."""
    factors = named.get("per_sample_weights", options[4] if len(options) > 4 else None)
    return 0 if factors is None else ids.numel() * weight.shape[1]


# By the name of the operator; `out` is what it returned. Each takes what the operator takes.
FORMULAS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("mm", "bmm", "_int_mm", "_scaled_mm"), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "_addmm_activation"), _added_product),
    "mv": lambda a, x, **_: a.numel(),
    "addmv": lambda _, a, x, **__: a.numel(),
    "dot": lambda a, b, **_: a.numel(),
    "vdot": lambda a, b, **_: a.numel(),
    "addr": lambda _, a, b, **__: a.numel() * b.numel(),
    **dict.fromkeys(
        ("linear", "_weight_int8pack_mm"), lambda x, weight, *_, **__: x.numel() * weight.shape[0]
    ),
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), _convolution),
    "conv_tbc": lambda x, weight, *_, out, **__: out.numel() * weight.shape[0] * weight.shape[1],
    "_trilinear": _trilinear,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), _bag),
}

# No products of matrices: element-wise work beyond what PyTorch itself calls pointwise, copies, look-ups, sums.
_FREE_NAMES = """
    sum nansum mean prod amax amin max min aminmax argmax argmin any all var std var_mean std_mean norm count_nonzero
    linalg_vector_norm logsumexp median nanmedian mode kthvalue topk sort argsort cumsum cumprod cummax cummin
    logcumsumexp _cummax_helper _cummin_helper trace histc bincount unique_consecutive unique_dim _unique _unique2
    _softmax _log_softmax softmax log_softmax _safe_softmax _masked_softmax _prelu_kernel glu log_sigmoid_forward
    rrelu_with_noise native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update _fused_rms_norm
    _weight_norm_interface renorm native_norm frobenius_norm
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
    fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d cat stack _stack block_diag repeat repeat_interleave roll flip rot90 tril triu tril_indices
    triu_indices im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle diag_embed select_scatter slice_scatter
    diagonal_scatter as_strided_scatter split unsafe_split unsafe_split_with_sizes split_with_sizes_copy
    embedding embedding_renorm index index_select _unsafe_index _unsafe_masked_index gather take index_put
    _index_put_impl _unsafe_index_put index_add index_copy index_fill scatter scatter_add scatter_reduce index_reduce
    masked_fill masked_select masked_scatter put nonzero nonzero_static searchsorted bucketize isin segment_reduce
    clone copy _to_copy _unsafe_view lift lift_fresh lift_fresh_copy contiguous fill zero set resize resize_as detach
    alias_copy view_copy permute_copy transpose_copy expand_copy unbind_copy narrow_copy t_copy squeeze_copy
    unsqueeze_copy slice_copy select_copy _reshape_alias_copy unfold_copy as_strided_copy as_strided
    squeeze unsqueeze transpose t swapaxes swapdims
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided new_full new_ones new_zeros full full_like
    ones ones_like zeros zeros_like arange range linspace logspace eye scalar_tensor complex polar
    rand rand_like randn randn_like randint randint_like randperm normal normal_functional uniform bernoulli random
    exponential geometric log_normal cauchy multinomial poisson native_dropout dropout
    _local_scalar_dense equal is_nonzero is_same_size is_pinned _pin_memory record_stream _assert_async _assert_scalar
    _assert_tensor_metadata _is_all_true _is_any_true allclose item _has_same_storage_numel is_set_to
    is_set_to sym_size sym_stride sym_numel sym_storage_offset
    _thnn_fused_lstm_cell _thnn_fused_gru_cell _pack_padded_sequence
    fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_channel_affine quantize_per_tensor quantize_per_channel dequantize int_repr
    mse_loss smooth_l1_loss huber_loss nll_loss_forward nll_loss2d_forward binary_cross_entropy
    binary_cross_entropy_with_logits soft_margin_loss
"""
_FREE = frozenset(_FREE_NAMES.split())
_NO_DATA = frozenset(("prim", "prims"))


def formula_of(operator: Any) -> Callable[..., int] | None:
    """The formula of an operator of PyTorch's own, or None."""
    return FORMULAS.get(_name_of(operator)) if operator.namespace == "aten" else None


def is_free(operator: Any) -> bool:
    """Whether the operator is known to multiply no matrices: a view, element-wise, or one of the list."""
    if operator.namespace in _NO_DATA:
        return True
    if operator.namespace != "aten":
        return False
    name = _name_of(operator)
    if name in _FREE or name.startswith("__") or torch.Tag.pointwise in operator.tags:
        return True
    plain = getattr(torch.ops.aten, name, None)  # the form that is not in place has the tag
    if plain is not None and any(torch.Tag.pointwise in getattr(plain, o).tags for o in plain.overloads()):
        return True
    infos = [argument.alias_info for argument in operator._schema.arguments]
    return any(info is not None and not info.is_write for info in infos)


def _name_of(operator: Any) -> str:
    name = operator._schema.name.partition("::")[2]
    return name if name.startswith("__") else name.rstrip("_")
