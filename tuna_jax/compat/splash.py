"""JAX's splash attention kernel for TPUs, under masks that are computed on the device.

Written against jax 0.10.2. The names were also checked, by reading the source, in jax 0.11.2 and 0.12.0
(`tests/compat/inspect_wheels.py`). The public way, `make_splash_mha`, takes masks that are known before tracing; our
masks differ for every example, so the kernel's own classes are constructed here. Import this module only where the
kernel is used: it imports Pallas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Float, Int

VERSION = "0.10.2"
"""The version of jax that this module was written against."""


def mask_info(
    next_block: Int[Array, "q k"], runs: Int[Array, "q k"], intervals: Int[Array, " s"]
) -> MaskInfo:
    """Which blocks the kernel computes, and what it passes to the mask function; shared by all heads.

    Args:
      next_block: the block to fetch next, for every pair of a block of queries and one of keys.
      runs: 1 where the pair is computed, 0 where it is skipped.
      intervals: a number for each query, the mask function's first argument.
    """
    # JAX declares a NumPy array, since its own masks are known before tracing; any array is accepted.
    numbers: Any = intervals
    return MaskInfo(
        data_next=next_block[None],
        mask_next=None,
        block_mask=runs[None],
        partial_mask_blocks=None,
        q_sequence=numbers,
    )


def attention_kernel(
    forward: MaskInfo,
    backward: MaskInfo,
    *,
    mask_function: Callable[[Array, Array], Array],
    block: int,
    backward_keys: int,
    fused: bool,
    output_name: str,
    interpret: bool,
) -> Callable[[Array, Array, Array], Array]:
    """The kernel `(query [h, q, d], key [g, k, d], value [g, k, d]) -> [h, q, d]`, which does not scale the scores.

    Args:
      forward: blocks of the forward pass, and of the queries' gradients when these have a pass of their own.
      backward: blocks of the pass for the gradients of keys and values.
      mask_function: `(intervals, key index) -> whether the query sees the key`.
      block: queries, and keys, of a block.
      backward_keys: keys that the pass for the gradients of keys and values holds at a time, a multiple of `block`.
      fused: compute all gradients in one pass.
      output_name: the name under which a remat policy knows the outputs.
      interpret: run without a TPU, slowly.
    """
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=backward_keys,
        block_kv_dkv_compute=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    kernel: Any = kernels.SplashAttentionKernel(
        forward,
        None if fused else forward,
        backward,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=output_name,
        mask_function=mask_function,
        interpret=interpret,
    )
    return kernel


def forward_of_block(
    info: MaskInfo,
    query: Float[Array, "h q d"],
    key: Float[Array, "g k d"],
    value: Float[Array, "g k d"],
    *,
    mask_function: Callable[[Array, Array], Array],
    block: int,
    interpret: bool,
) -> tuple[Float[Array, "h q d"], Float[Array, "h q"]]:
    """Outputs of the kernel on some of the keys, and the log-sum-exps of the scores over them.

    The kernel can return these but not differentiate them, so `backward_of_block` calls its backward passes. Where a
    query sees none of the keys, both are meaningless.
    """
    kernel: Any = kernels.SplashAttentionKernel(
        info,
        None,
        None,
        block_sizes=kernels.BlockSizes(block_q=block, block_kv=block),
        is_mqa=False,
        save_residuals=True,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=mask_function,
        interpret=interpret,
    )
    out, (lse,) = kernel(query, key, value)
    return out, lse


def backward_of_block(
    forward: MaskInfo,
    backward: MaskInfo,
    query: Float[Array, "h q d"],
    key: Float[Array, "g k d"],
    value: Float[Array, "g k d"],
    gradient: Float[Array, "h q d"],
    lse: Float[Array, "h q"],
    delta: Float[Array, "h q"],
    *,
    mask_function: Callable[[Array, Array], Array],
    block: int,
    backward_keys: int,
    fused: bool,
    interpret: bool,
) -> tuple[Float[Array, "h q d"], Float[Array, "g k d"], Float[Array, "g k d"]]:
    """The gradients of queries, keys and values through the scores over these keys.

    Args:
      forward, backward, mask_function, block, backward_keys, fused, interpret: see `attention_kernel`.
      query, key, value: arguments of the forward pass.
      gradient: of the outputs over all keys.
      lse: log-sum-exps over all keys.
      delta: the sum over channels of outputs over all keys times their gradients.
    """
    arrays = (query, key, value, None, None, lse, gradient, delta)
    layout = kernels.QKVLayout.HEAD_DIM_MINOR
    options: dict[str, Any] = {
        "is_mqa": False,
        "mask_value": kernels.DEFAULT_MASK_VALUE,
        "attn_logits_soft_cap": None,
        "q_layout": layout,
        "k_layout": layout,
        "v_layout": layout,
        "mask_function": mask_function,
        "interpret": interpret,
    }
    dquery, dkey, dvalue = kernels._splash_attention_bwd_dkv(
        *arrays,
        bq=block,
        bkv=backward_keys,
        bkv_compute=block,
        mask_info=backward,
        use_fused_bwd_kernel=fused,
        **options,
    )
    if not fused:
        dquery = kernels._splash_attention_bwd_dq(
            *arrays, bq=block, bkv=block, mask_info=forward, **options
        )
    assert dquery is not None
    return dquery, dkey, dvalue
