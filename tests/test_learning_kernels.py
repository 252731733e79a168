"""What computes imp-nano's layers while it learns on a CPU: the same as torch does, and only while it is asked to."""

import pytest
import torch
from torch.nn import functional as F

from imp_kit.nano.training.kernels import LearningKernels, attention


def heads(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return [torch.randn(3, 2, 20, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def some_mask():
    mask = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(5)) < 0.4
    return mask | torch.eye(20, dtype=torch.bool)


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["all", "masked"])
def test_attention_and_its_gradients_are_those_of_torch(mask):
    ours, theirs = heads(1), heads(1)
    weights = torch.randn(3, 2, 20, 8, dtype=torch.float64)
    out, expected = attention(*ours, mask=mask), F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-12)


def test_gradients_agree_with_differences():
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, mask=some_mask()), heads(2))


def test_in_bf16_it_is_as_exact_as_torchs_own():
    exact = F.scaled_dot_product_attention(*heads(3), attn_mask=some_mask())
    coarse = [part.bfloat16() for part in heads(3)]
    error = (attention(*coarse, mask=some_mask()) - exact).abs().max()
    assert error < 1.5 * (F.scaled_dot_product_attention(*coarse, attn_mask=some_mask()) - exact).abs().max()


def test_modules_are_computed_so_only_while_it_is_active(monkeypatch):
    called = []
    monkeypatch.setattr("imp_kit.nano.training.kernels.attention", lambda *_, **more: called.append(more["mask"]))
    q, k, v = heads(4)
    x = torch.linspace(-6, 6, 200)
    with LearningKernels():
        F.scaled_dot_product_attention(q, k, v, attn_mask=some_mask())
        inside = F.gelu(x, approximate="tanh")
    F.scaled_dot_product_attention(q, k, v)
    assert [mask is None for mask in called] == [False]
    torch.testing.assert_close(inside, F.gelu(x), rtol=0, atol=0)
    difference = (inside - F.gelu(x, approximate="tanh")).abs().max()
    assert 1e-4 < difference < 5e-4  # as its docstring says; outside it is the tanh form again


def test_what_it_does_not_compute_is_left_to_torch():
    q, k, v = heads(5)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    grouped = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    scaled = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    bias = torch.randn(20, 20, dtype=torch.float64)
    biased = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with LearningKernels():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True), expected)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True), grouped)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, scale=1.0), scaled)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), biased)


def test_tiny_numbers_are_zero_only_while_it_is_active():
    tiny = torch.full((64,), 1e-30)
    with LearningKernels():
        inside = tiny * 1e-10
    assert not inside.any()
    assert (tiny * 1e-10).all()


def test_an_error_inside_ends_it():
    with pytest.raises(ZeroDivisionError), LearningKernels():
        raise ZeroDivisionError
    assert (torch.full((64,), 1e-30) * 1e-10).all()
