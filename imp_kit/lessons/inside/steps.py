"""One image followed to one word: what the decoder holds on the way, and what of the image the word needs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from imp_kit.errors import PromptError, SettingError
from imp_kit.model.decoder import Attention, rotate
from imp_kit.model.imp import ImpModel
from imp_kit.prompts import check_text
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

    from imp_kit.imp import Imp

CELLS = 12  # places in a row at which a picture is covered, at most
BATCH = 8  # images at once
DRAWS = 5  # random choices of patches, of which the mean is shown


class Run(NamedTuple):
    """What one pass through the decoder held."""

    hidden: Tensor  # (layers + 1, n, hidden_size): what enters the first layer, then what leaves each
    attention: Tensor  # (layers, heads, n), fp32: how the last position weighs each position
    logits: Tensor  # (vocab_size,), fp32: scores of the next token


def prompt_ids(imp: "Imp", question: str, begun: str = "") -> tuple[list[int], list[int]]:
    """Token ids before the image and after it, for an answer that begins with the text `begun`.

    They are those that `View.next_tokens` reads. Raises SettingError, CheckpointError, or PromptError where a question
    cannot be asked or makes the prompt too long.
    """
    if not isinstance(begun, str):
        raise SettingError(f"begun is {begun!r:.80}; give the text that the answer begins with.")
    tokenizer, template, config = imp.tokenizer, imp.template, imp.model.config
    before = tokenizer.encode_pieces(template.open(), begins=True)
    after = [*tokenizer.encode_pieces(template.ask(question, first=True)), *tokenizer.suffix]
    check_text("begun answer", begun)
    text = begun.lstrip()
    after += tokenizer.encode(template.answer + text, begins=False) if text else []
    length, limit = len(before) + config.vision.num_patches + len(after), config.decoder.max_positions
    if length > limit:
        raise PromptError(f"The prompt is {length} tokens long, and {imp.name} reads {limit}. Ask a shorter question.")
    return before, after


def attention_weights(
    attention: Attention, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, last: int
) -> tuple[Tensor, Tensor]:
    """How a layer of the decoder weighs its positions: softmax(q k / sqrt(head_dim)) and the values that it weighs.

    The layer itself calls a kernel that gives no weights, so they are computed again from its input `x`, float
    (batch, n, hidden_size), and what else it got: `rope` as `rope_at` makes it, and `mask`, bool (1, 1, n, n), or None
    where each position sees all up to itself. Returns weights (batch, heads, last, n) of the `last` queries and values
    (batch, heads, n, head_dim), both fp32: Phi-2's scores leave the range of fp16.
    """
    batch, count, width = x.shape
    queries, keys = attention.num_heads, attention.num_kv_heads
    qkv = attention.qkv(x).view(batch, count, queries + 2 * keys, width // queries).float()
    rotate(qkv[:, :, : queries + keys], rope)
    q, k, v = qkv.transpose(1, 2).split((queries, keys, keys), dim=1)
    k, v = (each.repeat_interleave(queries // keys, dim=1) for each in (k, v))
    scores = q[:, :, -last:] @ k.transpose(-1, -2) / math.sqrt(width // queries)
    positions = torch.arange(count, device=x.device)
    seen = positions <= positions[-last:, None] if mask is None else mask[..., -last:, :]
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), v


@torch.inference_mode()
def run(model: ImpModel, embeddings: Tensor) -> Run:
    """One pass of a prompt's embeddings, (1, n, hidden_size), through the decoder, and what was seen on the way."""
    hidden, attention = [embeddings[0]], []

    def weigh(module: Attention, inputs: tuple) -> None:
        x, rope, mask = inputs[:3]
        attention.append(attention_weights(module, x, rope, mask, last=1)[0][0, :, 0])

    layers: Any = model.decoder.layers
    handles = [layer.register_forward_hook(lambda _, inputs, output: hidden.append(output[0])) for layer in layers]
    handles += [layer.attention.register_forward_pre_hook(weigh) for layer in layers]
    try:
        last = model.decoder(embeddings)[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return Run(torch.stack(hidden), torch.stack(attention), model.decoder.logits(last))


def attention_maps(seen: Run, start: int, side: int) -> Tensor:
    """How the last position weighs the image tokens, which begin at `start`: (layers, side, side), a mean of heads."""
    return seen.attention[:, :, start : start + side * side].mean(dim=1).unflatten(-1, (side, side)).cpu()


def likeliest(imp: "Imp", logits: Tensor, count: int = 1) -> list[tuple[str, float]]:
    """The `count` most probable tokens of scores (vocab_size,): their texts and probabilities, largest first."""
    shares, ids = logits.float().softmax(dim=-1).topk(count)
    names = {id: token for token, id in imp.tokenizer.control.items()}
    texts = [names.get(id) or imp.tokenizer.decode([id]) for id in ids.tolist()]
    return list(zip(texts, shares.tolist(), strict=True))


@torch.inference_mode()
def lens(imp: "Imp", hidden: Tensor) -> list[tuple[str, float]]:
    """The word that each hidden state would give, at whatever depth, (n, hidden_size): its text and probability.

    The output layer reads them after the last norm, as if no layer followed ("logit lens").
    """
    decoder = imp.model.decoder
    return [likeliest(imp, row)[0] for row in decoder.logits(decoder.norm(hidden))]


# What the word needs -----------------------------------------------------------------------------------------


def cover(pixels: Tensor, patches: Sequence[int], patch_size: int) -> Tensor:
    """Pixels (3, size, size) whose `patches`, numbered row by row, have the image's mean color."""
    covered, side = pixels.clone(), pixels.shape[-1] // patch_size
    for number in patches:
        top, left = (patch_size * place for place in divmod(number, side))
        covered[:, top : top + patch_size, left : left + patch_size] = pixels.mean(dim=(1, 2))[:, None, None]
    return covered


def shuffle(pixels: Tensor, patch_size: int, seed: int = 0) -> Tensor:
    """Pixels (3, size, size) with the same patches in another order, drawn from `seed`; a rest at the edge stays."""
    side = pixels.shape[-1] // patch_size
    length = side * patch_size
    # To (patches, 3, patch, patch), and back in another order.
    squares = pixels[:, :length, :length].unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    squares = squares.flatten(1, 2)[:, permutation(side * side, seed)].unflatten(1, (side, side))
    shuffled = pixels.clone()
    shuffled[:, :length, :length] = squares.transpose(2, 3).reshape(3, length, length)
    return shuffled


def permutation(count: int, seed: int = 0) -> Tensor:
    """An order of `count` things, int64 (count,), the same on each machine."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def log_probabilities(
    model: ImpModel, images: Tensor, before: Sequence[int], after: Sequence[int], token: int, progress: bool = False
) -> Tensor:
    """How probable `token` is after the same prompt with each image: nats, fp32 on the CPU, (images,).

    `images` are pixels, (images, 3, size, size).
    """
    found = []
    with tqdm(total=len(images), unit="image", disable=not progress) as bar:
        for some in images.split(BATCH):
            prompts = torch.cat([model.splice([before, tokens, after]) for tokens in model.encode(some)])
            scores = model.decoder.logits(model.decoder(prompts)[:, -1])
            found.append(scores.log_softmax(dim=-1)[:, token].cpu())
            bar.update(len(some))
    return torch.cat(found)


def occlusion(
    model: ImpModel, pixels: Tensor, before: Sequence[int], after: Sequence[int], token: int, *, progress: bool = True
) -> Tensor:
    """How much the word needs each patch: by how many nats covering its surroundings makes `token` less probable.

    A square that is three cells wide covers the image (3, size, size) around each cell in turn; a cell is one patch, or
    several where there are many. Returns fp32 (side, side), patches in a row. After arXiv 1311.2901, section 4.2.
    """
    patch, size = model.config.vision.patch_size, pixels.shape[-1]
    side = size // patch
    step = -(-side // CELLS)
    numbers = torch.arange(side * side).view(side, side)
    corners = range(0, side, step)
    squares = [
        numbers[max(0, row - step) : row + 2 * step, max(0, column - step) : column + 2 * step].flatten().tolist()
        for row in corners
        for column in corners
    ]
    images = torch.stack([pixels, *(cover(pixels, square, patch) for square in squares)])
    whole, *rest = log_probabilities(model, images, before, after, token, progress)
    drops = (whole - torch.stack(rest)).view(len(corners), len(corners))
    return drops.repeat_interleave(step, 0).repeat_interleave(step, 1)[:side, :side]


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two maps: 1 for the same order, 0 for nothing in common, -1 for the reverse.

    It is nan where a map has one value alone.
    """
    require("notebooks", "pandas", what="A rank correlation")
    from pandas import Series

    return Series(one.flatten().tolist()).rank().corr(Series(other.flatten().tolist()).rank())


def deletion(
    model: ImpModel,
    pixels: Tensor,
    before: Sequence[int],
    after: Sequence[int],
    token: int,
    maps: Mapping[str, Tensor],
    shares: Sequence[float] = (0.1, 0.2),
) -> "DataFrame":
    """How probable `token` is when shares of the patches are covered: those with the largest values of each map.

    `maps` are (side, side). For comparison: no patch, and patches drawn at random (a mean of several draws). A map that
    finds what the word needs makes it improbable. Raises SettingError for a share that is no part.
    """
    require("notebooks", "pandas", what="A table")
    from pandas import DataFrame

    count, patch = model.config.vision.num_patches, model.config.vision.patch_size
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise SettingError(f"A share is {wrong[0]!r}; give parts of the patches above 0 and up to 1, such as 0.1.")
    sorted_patches = {f"most {name}": values.flatten().argsort(descending=True) for name, values in maps.items()}
    drawn = {f"draw {seed}": permutation(count, seed) for seed in range(DRAWS)}
    cut = [order[: round(share * count)] for share in shares for order in (*sorted_patches.values(), *drawn.values())]
    images = torch.stack([pixels, *(cover(pixels, patches.tolist(), patch) for patches in cut)])
    whole, *rest = log_probabilities(model, images, before, after, token).exp().tolist()
    columns: dict[str, list[float]] = {"0%": [whole] * (len(maps) + 1)}
    for number, share in enumerate(shares):
        found = rest[number * (len(maps) + DRAWS) :]
        columns[f"{share:.0%}"] = [*found[: len(maps)], sum(found[len(maps) :][:DRAWS]) / DRAWS]
    return DataFrame(columns, index=[*sorted_patches, "at random"]).rename_axis("covered patches").round(3)


@torch.inference_mode()
def variants(model: ImpModel, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """An image (3, size, size) in other orders: what is shown, as pixels, and its image tokens (patches, hidden_size).

    The patches change places before the tower, or the image tokens after the projector, where the image is as it was;
    "blank" has one color, the image's mean.
    """
    patch, count = model.config.vision.patch_size, model.config.vision.num_patches
    shuffled, blank = shuffle(pixels, patch), pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels)
    tokens = model.encode(torch.stack([pixels, shuffled, blank]))
    return {
        "the picture": (pixels, tokens[0]),
        "patches shuffled": (shuffled, tokens[1]),
        "image tokens shuffled": (pixels, tokens[0][permutation(count).to(tokens.device)]),
        "blank": (blank, tokens[2]),
    }


def answers(
    imp: "Imp", orders: Mapping[str, tuple[Tensor, Tensor]], asked: Mapping[str, str], count: int = 3
) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """The likeliest next tokens for each question, by the image tokens of each of `orders` (see `variants`).

    `asked` has the text with which each question's answer begins. Raises as `prompt_ids`.
    """
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for question, begun in asked.items():
        before, after = prompt_ids(imp, question, begun)
        embeddings = {name: imp.model.splice([before, tokens, after]) for name, (_, tokens) in orders.items()}
        found[question] = {name: likeliest(imp, run(imp.model, row).logits, count) for name, row in embeddings.items()}
    return found
