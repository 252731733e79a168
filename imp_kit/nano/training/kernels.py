"""Quicker ways to compute what imp-nano's layers compute, for learning in bf16 on a CPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class LearningKernels(TorchFunctionMode):
    """While it is active, attention of any module is computed by `attention`, and GELU in its exact form.

    Modules ask for GELU's tanh form, which torch computes several times as slowly. The two differ by less than 0.0005
    (test_learning_kernels.py), which is little beside bf16's rounding. Numbers too small for fp32's exponent become 0
    in this thread: they cost a CPU many times what others do, and shares of attention often are so small.
    """

    def __enter__(self) -> "LearningKernels":
        torch.set_flush_denormal(True)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch.set_flush_denormal(False)

    def __torch_function__(self, function: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if function is F.gelu:
            return F.gelu(*args, **{**kwargs, "approximate": "none"})
        if function is F.scaled_dot_product_attention and len(args) == 3:
            mask, others = kwargs.get("attn_mask"), [kwargs[name] for name in kwargs if name != "attn_mask"]
            if not any(others) and (mask is None or mask.dtype == torch.bool):
                return attention(*args, mask=mask)
        return function(*args, **kwargs)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, each (batch, heads, n, head_dim), forwards and back.

    `mask`, bool (batch, 1, n, n), says which keys a query sees; each has to see one.
    """
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    return _Attention.apply(q, k, v, mask)


class _Attention(torch.autograd.Function):
    """One image of the batch at a time, whose scores fit into the cache of a core."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, count, width = q.shape
        out = q.new_empty(batch, count, heads, width).transpose(1, 2)
        shares = []
        for i in range(batch):
            keys = k[i].transpose(1, 2)
            if bias is None:
                scores = (q[i] * width**-0.5) @ keys
            else:
                scores = torch.baddbmm(bias[i].expand(heads, -1, -1), q[i], keys, alpha=width**-0.5)
            shares.append(scores.softmax(dim=-1))
            out[i] = shares[i] @ v[i]
        ctx.save_for_backward(q, k, v, *shares)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        grads = []
        for qi, ki, vi, share, gradient in zip(q, k, v, shares, grad, strict=True):
            scale = qi.shape[-1] ** -0.5
            scores = torch._softmax_backward_data(gradient @ vi.transpose(1, 2), share, -1, share.dtype)
            grads.append(
                (scores @ (ki * scale), scores.transpose(1, 2) @ (qi * scale), share.transpose(1, 2) @ gradient)
            )
        return *(torch.stack(each) for each in zip(*grads, strict=True)), None
