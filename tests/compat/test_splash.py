"""The names and parameters of JAX's splash kernel that `compat/splash.py` uses; tests/models/test_splash.py runs it."""

import dataclasses
import inspect

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from tuna_jax.compat import splash

KNOWN = f"compat/splash.py was written for jax {splash.VERSION}; this is {jax.__version__}"


def test_the_masks_fields_are_those_that_we_fill():
    fields = ("data_next", "mask_next", "block_mask", "partial_mask_blocks", "q_sequence")
    assert MaskInfo._fields[:5] == fields, KNOWN
    assert set(MaskInfo._fields[5:]) <= set(MaskInfo._field_defaults), KNOWN


def test_the_block_sizes_are_those_that_we_choose():
    fields = {field.name for field in dataclasses.fields(kernels.BlockSizes)}
    used = {
        "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
        "block_kv_dq", "use_fused_bwd_kernel",
    }  # fmt: skip
    assert used <= fields, KNOWN


def test_the_kernel_takes_what_we_pass():
    made = list(inspect.signature(kernels.SplashAttentionKernel.__init__).parameters.values())
    assert [p.name for p in made[1:4]] == ["fwd_mask_info", "dq_mask_info", "dkv_mask_info"], KNOWN
    assert made[4].kind is inspect.Parameter.VAR_KEYWORD, KNOWN
    # The constructor keeps its keywords and passes them to this function.
    called = inspect.signature(kernels._splash_attention).parameters
    names = [name for name, p in called.items() if p.kind is p.KEYWORD_ONLY]
    assert set(names) == {
        "is_mqa", "block_sizes", "save_residuals", "mask_value", "attn_logits_soft_cap",
        "residual_checkpoint_name", "mask_function", "interpret",
    }, KNOWN  # fmt: skip
    assert list(called)[3:6] == ["q", "k", "v"], KNOWN
    assert isinstance(kernels.DEFAULT_MASK_VALUE, float), KNOWN


def test_the_backward_passes_take_what_we_pass():
    arrays = ["q", "k", "v", "segment_ids", "sinks", "logsumexp", "do", "di"]
    common = {
        "bq", "bkv", "is_mqa", "mask_info", "mask_value", "attn_logits_soft_cap", "q_layout", "k_layout", "v_layout",
        "mask_function", "interpret",
    }  # fmt: skip
    for function, more in (
        (kernels._splash_attention_bwd_dq, set()),
        (kernels._splash_attention_bwd_dkv, {"bkv_compute", "use_fused_bwd_kernel"}),
    ):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:8] == arrays, KNOWN
        names = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert names == common | more, KNOWN
    assert kernels.QKVLayout.HEAD_DIM_MINOR is not None, KNOWN
