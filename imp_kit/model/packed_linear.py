"""How a layer's weight is stored in memory: plain, packed for a CPU's products, in fp16 for fp32, or in 8 bits.

Decoding reads every weight once a token, so its speed is that of reading: half the bytes, up to twice the speed.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imp_kit.errors import SettingError

QUANTIZED = ("int8",)
# Of an ImpModel, what reads its weights for single tokens. The tower's work is bound by arithmetic, where fewer bits
# would win nothing.
DECODER = "decoder."
# For how many rows oneDNN packs a weight. Blocks for a single one are no faster for a token, and they halve the rate
# of a prompt on a CPU with matrix tiles (AMX).
PACKED_FOR = 8
SMALL = 4e6  # bytes of an fp32 weight; up to here oneDNN's own overhead costs a single row more than its blocks save it
PIECE = 1 << 18  # values that a CPU's cache holds in several forms
BLOCK = 512  # columns; FBGEMM fills a weight up to whole blocks of them
PACKERS = 4  # threads at most that pack parts of a weight; each part costs a product 10 microseconds
FEW_ROWS = 16  # up to here torch's 8-bit product is faster than widening the weight first (measured on AVX-512)


class GeluLinear(nn.Linear):
    """A linear layer and the tanh form of GELU (arXiv 1606.08415) after it; some products do both at once."""

    def forward(self, x: Tensor) -> Tensor:
        return _gelu(super().forward(x))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class PackedLinear(nn.Module):
    """A linear layer on the CPU whose weight is in oneDNN's blocks: packed once, not for every product.

    The weight is opaque but for its shape, dtype and number of elements. The operators are those that torch's own
    compiler calls for frozen weights. With `singles`, a small weight is kept plain, too, for single rows.
    """

    def __init__(self, linear: nn.Linear, singles: bool = False):
        super().__init__()
        plain = linear.weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(plain, PACKED_FOR)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        small = plain.dtype == torch.float32 and plain.nbytes <= SMALL
        self.plain = plain.clone() if singles and small else None
        self.gelu = isinstance(linear, GeluLinear)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain is not None and x.numel() == x.shape[-1]:
            y = F.linear(x, self.plain, self.bias)
            return _gelu(y) if self.gelu else y
        activation: tuple[str, list, str] = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *activation)


class HalfLinear(nn.Module):
    """A linear layer on the CPU that computes in fp32 while its weight stays in fp16: half the bytes, the same values.

    For a weight that fp16 holds exactly, such as each of a checkpoint stored in fp16. The products are those of FBGEMM
    (arXiv 2101.05615), which widens a few values at a time. The weight is opaque but for its shape, dtype and number
    of elements.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        plain = linear.weight.detach()
        self.weight = nn.Parameter(torch.empty_like(plain, dtype=torch.float16, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.gelu = isinstance(linear, GeluLinear)
        # FBGEMM packs in one thread, and slowly: 0.4 s for a weight of 10240 x 2560.
        parts = plain.chunk(min(PACKERS, torch.get_num_threads()))
        with ThreadPoolExecutor(len(parts)) as pool:
            self.parts = list(pool.map(torch.ops.quantized.linear_prepack_fp16, parts))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.cat([torch.ops.quantized.linear_dynamic_fp16(rows, part) for part in self.parts], dim=-1)
        if self.bias is not None:
            y += self.bias
        return (_gelu(y) if self.gelu else y).view(*x.shape[:-1], len(self.weight))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HalfLinear":
        """What `to` and its like call: `fn` turns a tensor into the one that replaces it."""
        moved = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
        if (moved.device.type, moved.dtype) != ("cpu", torch.float32):
            self._refuse()
        return self

    def _refuse(self, *_: object) -> NoReturn:
        raise NotImplementedError("A weight packed for the CPU cannot be moved, saved or filled; load once more.")

    _save_to_state_dict = _load_from_state_dict = _refuse  # type: ignore[assignment]


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight and one scale a row, whose largest weight is 127; inputs stay as they are.

    Absmax quantization as in arXiv 2208.07339, section 2, by rows and of the weight alone.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        # A row of zeros has any scale.
        scale = weight.abs().amax(dim=1).float().clamp(min=1e-12) / 127
        quantized = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows in range(0, len(weight), 1024):  # in fp32 a whole weight would need four times its memory
            part = slice(rows, rows + 1024)
            quantized[part] = (weight[part].float() / scale[part, None]).round().to(torch.int8)
        self.weight = nn.Parameter(quantized, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        self.bias = linear.bias
        self.gelu = isinstance(linear, GeluLinear)
        self.has_product = _has_int8_product(weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if self.has_product and rows <= FEW_ROWS:
            flat = torch._weight_int8pack_mm(x.reshape(rows, -1), self.weight, self.scale)
            y = flat.view(*x.shape[:-1], -1).to(x.dtype)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        if self.bias is not None:
            y = y + self.bias
        return _gelu(y) if self.gelu else y


def packed_itemsize(
    name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype, quantize: str | None, half: bool
) -> int:
    """Bytes of each value of a linear layer's weight after `pack_linear`; `half`: its values are fp16's."""
    if quantize and name.startswith(DECODER):
        return 1
    return 2 if half and name.startswith(DECODER) and _can_be_half(shape, device, dtype) else dtype.itemsize


def check_quantize(quantize: str | None) -> None:
    """Raise SettingError unless `quantize` is None or one of QUANTIZED."""
    if quantize is not None and quantize not in QUANTIZED:
        raise SettingError(
            f"quantize is {quantize!r}; give {' or '.join(map(repr, QUANTIZED))}, or leave it out for 16 or 32 bit. "
            "Types of llama.cpp need engine='llama.cpp'."
        )


def pack_linear(name: str, module: nn.Module, quantize: str | None = None) -> nn.Module:
    """What replaces a filled module of an ImpModel, called `name` there: the module itself unless it is a linear layer.

    `quantize` "int8" holds for the decoder.
    """
    if not isinstance(module, nn.Linear):
        return module
    decodes = name.startswith(DECODER)
    if quantize and decodes:
        return Int8Linear(module)
    weight = module.weight.detach()
    if decodes and _can_be_half(weight.shape, weight.device, weight.dtype) and _is_half(weight):
        return HalfLinear(module)
    return PackedLinear(module, singles=decodes) if _can_be_packed(weight) else module


def pack_model(model: nn.Module, quantize: str | None = None) -> None:
    """Replace the linear layers of an ImpModel as `pack_linear` says. Raises SettingError."""
    check_quantize(quantize)
    # By name, so that no plain weight outlives its packed one.
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        model.set_submodule(name, pack_linear(name, model.get_submodule(name), quantize))


def _can_be_half(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a weight of this shape may stay in fp16, should its values be fp16's."""
    rows, columns = shape
    pays = 4 * rows * columns > SMALL and -columns % BLOCK <= columns / 10
    fp32_on_cpu = dtype == torch.float32 and device.type == "cpu"
    return pays and fp32_on_cpu and _has_half_product(torch.backends.quantized.engine)


def _is_half(weight: Tensor) -> bool:
    """Whether fp16 holds each value of an fp32 weight; compared in pieces, as the first one mostly decides."""
    largest = torch.finfo(torch.float16).max  # FBGEMM has no infinity
    pieces = weight.reshape(-1).split(PIECE)
    return all(torch.equal(piece, piece.half().float().clamp(-largest, largest)) for piece in pieces)


@functools.cache
def _has_half_product(engine: str) -> bool:
    """Whether torch, set to this engine, multiplies fp32 rows by an fp16 weight: FBGEMM does on x86, from AVX2 on."""
    ones = torch.ones(64, 64, dtype=torch.float32, device="cpu")
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(ones)
        return bool((torch.ops.quantized.linear_dynamic_fp16(ones, packed) == 64).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _can_be_packed(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _has_int8_product(weight: Tensor) -> bool:
    """Whether torch has a quick product of few rows with an int8 weight: on a CPU it does in bf16 only."""
    if weight.device.type == "cpu" and weight.dtype != torch.bfloat16:
        return False
    try:
        row = torch.ones(1, 64, dtype=weight.dtype, device=weight.device)
        torch._weight_int8pack_mm(row, torch.ones(64, 64, dtype=torch.int8, device=weight.device), row[0])
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


def has_amx() -> bool:
    """Whether this CPU multiplies matrices in tiles of registers (Intel's AMX), as far as torch knows."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so a version may lack it
    return bool(supported and supported())
