"""How far the kit's network is from transformers' own classes: `python tests/tools/parity.py` prints it as Markdown.

The tests in test_parity.py ask the same functions.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import transformers
from oracle import DECODER, FAMILIES, TOWER, Oracle, SiglipImageProcessor, make_oracle, write_checkpoint
from packaging import version
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from imp_kit.checkpoints.load import load_weights
from imp_kit.images import to_pixels
from imp_kit.model import decoder, vision
from imp_kit.model.generate import generate
from imp_kit.model.imp import ImpModel
from imp_kit.model.sampling import Sampling

STEPS = 64
# What fine-tunes on newer language models have: name -> family, layout, sizes. The windows are shorter than a prompt.
# transformers before 5 gives all of Qwen2's layers the window, whatever max_window_layers says.
ALL_LAYERS = {"use_sliding_window": True, "max_window_layers": 0}
VARIANTS = {
    "qwen, shared keys": ("imp_qwen2", "qwen", {"num_key_value_heads": 2}),
    "qwen, window": ("imp_qwen2", "qwen", {"sliding_window": 11, **ALL_LAYERS}),
    "phi3, one key": ("imp_phi3", "phi3", {"num_key_value_heads": 1}),
    "phi3, window": ("imp_phi3", "phi3", {"sliding_window": 7}),
    "phi3, both": ("imp_phi3", "phi3", {"num_key_value_heads": 2, "sliding_window": 19}),
}
if version.parse(transformers.__version__).major >= 5:
    LATER = {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1, "num_key_value_heads": 2}
    VARIANTS["qwen, window in the later layers"] = ("imp_qwen2", "qwen", LATER)
# Name of a checkpoint -> its oracle's.
KEY_MAPS = {"old": "imp", "new": "imp", "qwen": "imp_qwen2", "phi3": "imp_phi3"} | {name: name for name in VARIANTS}
# Largest absolute difference of logits that counts as the same network, and what a mutation must exceed.
SAME, CAUGHT = 1e-4, 1e-3
# Text before the picture and after it, of different lengths, so that a batch of all three is padded.
LENGTHS = ((5, 9), (1, 30), (12, 2))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt and what the oracle answers: its greedy tokens, and its scores over prompt and answer."""

    before: list[int]
    pixels: Tensor
    after: list[int]
    answer: list[int]
    logits: Tensor

    @property
    def length(self) -> int:
        """Positions of the prompt, the answer left out."""
        return len(self.logits) - len(self.answer)


@cache
def oracle(name: str = "imp") -> Oracle:
    """A family's, or that of a variant."""
    if name not in VARIANTS:
        return make_oracle(0, name)
    family, _, changes = VARIANTS[name]
    made = Oracle(family, FAMILIES[family][2] | changes)
    made.randomise(0)
    return made


def write(name: str, folder: Path) -> Path:
    """The checkpoint of one of KEY_MAPS."""
    return write_checkpoint(oracle(KEY_MAPS[name]), folder, VARIANTS[name][1] if name in VARIANTS else name)


@cache
def prompts(family: str = "imp") -> tuple[Prompt, ...]:
    """The prompts, answered by the oracle one at a time, without padding and without a cache."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for counts in LENGTHS:
        before, after = (torch.randint(DECODER["vocab_size"], (n,), generator=generator).tolist() for n in counts)
        pixels = torch.rand(3, TOWER["image_size"], TOWER["image_size"], generator=generator) * 2 - 1
        truth = oracle(family)
        answer = truth.greedy(truth.embed(before, pixels, after), STEPS)
        logits = truth.logits(truth.embed(before, pixels, after + answer))[0]
        made.append(Prompt(before, pixels, after, answer, logits))
    return tuple(made)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ImpModel:
    return load_weights(folder, torch.device("cpu"), dtype)[0]


def embed(model: ImpModel, prompt: Prompt, answer: bool) -> Tensor:
    """The kit's embeddings of a prompt, with the oracle's answer behind it or without."""
    picture = model.encode(prompt.pixels[None])[0]
    return model.splice([prompt.before, picture, prompt.after + prompt.answer * answer])


def pad(rows: list[Tensor]) -> tuple[Tensor, decoder.Padding | None]:
    """Rows (1, n, width) of different lengths -> a left-padded batch, and each row's padding (None for one row).

    The padding is loud noise: whatever of it reached a row would show.
    """
    if len(rows) == 1:
        return rows[0], None
    longest = max(row.shape[1] for row in rows)
    generator = torch.Generator().manual_seed(2)
    batch = 100 * torch.randn(len(rows), longest, rows[0].shape[-1], generator=generator).to(rows[0].dtype)
    for place, row in zip(batch, rows, strict=True):
        place[longest - row.shape[1] :] = row[0]
    return batch, decoder.Padding(torch.tensor([longest - row.shape[1] for row in rows]))


@torch.inference_mode()
def logits(model: ImpModel, chosen: tuple[Prompt, ...], cached: bool) -> list[Tensor]:
    """The kit's scores over each prompt and the oracle's answer.

    `cached`: the prompt in one pass, then the answer token by token. Else everything in one pass.
    """
    if not cached:
        batch, padding = pad([embed(model, prompt, answer=True) for prompt in chosen])
        scores = model.decoder.logits(model.decoder(batch, None, padding))
    else:
        batch, padding = pad([embed(model, prompt, answer=False) for prompt in chosen])
        store = model.new_cache(batch.shape[1] + STEPS, len(chosen))
        hidden = [model.decoder(batch, store, padding)]
        for ids in torch.tensor([prompt.answer for prompt in chosen]).T:
            hidden.append(model.decoder(model.decoder.embed_tokens(ids)[:, None], store, padding))
        scores = model.decoder.logits(torch.cat(hidden, dim=1))
    return [row[-len(prompt.logits) :] for row, prompt in zip(scores, chosen, strict=True)]


def difference(model: ImpModel, chosen: tuple[Prompt, ...], cached: bool) -> float:
    """Largest absolute difference between the kit's and the oracle's scores."""
    ours = logits(model, chosen, cached)
    return max((row.float() - prompt.logits).abs().max().item() for row, prompt in zip(ours, chosen, strict=True))


@torch.inference_mode()
def answers(model: ImpModel, chosen: tuple[Prompt, ...], cached: bool) -> list[list[int]]:
    """The kit's greedy tokens; without a cache everything is computed anew for each of them."""
    batch, padding = pad([embed(model, prompt, answer=False) for prompt in chosen])
    if cached:
        store = model.new_cache(batch.shape[1] + STEPS, len(chosen))
        steps = list(generate(model, batch, store, Sampling(STEPS), stop_ids=(), padding=padding))
    else:
        steps = []
        for _ in range(STEPS):
            ids = model.decoder.logits(model.decoder(batch, None, padding)[:, -1]).argmax(-1)
            steps.append(ids.tolist())
            batch = torch.cat((batch, model.decoder.embed_tokens(ids)[:, None]), dim=1)
    return [list(row) for row in zip(*steps, strict=True)]


def equal_tokens(model: ImpModel, chosen: tuple[Prompt, ...], cached: bool) -> int:
    """How many tokens of the worst row are the oracle's, counted up to the first that is not."""
    counts = []
    for ours, prompt in zip(answers(model, chosen, cached), chosen, strict=True):
        same = [a == b for a, b in zip(ours, prompt.answer, strict=True)]
        counts.append(same.index(False) if False in same else len(same))
    return min(counts)


# Wrong networks. Each function changes a loaded model in one place, and the comparison has to notice.


def exact_gelu(linear: nn.Linear) -> None:
    linear.forward = MethodType(lambda self, x: F.gelu(F.linear(x, self.weight, self.bias)), linear)


def exact_gelu_in_decoder(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        exact_gelu(layer.mlp.up)


def exact_gelu_in_tower(model: ImpModel) -> None:
    for layer in model.vision.encoder.layers:
        exact_gelu(layer.mlp.fc1)


def tanh_gelu_in_projector(model: ImpModel) -> None:
    model.projector[1] = nn.GELU(approximate="tanh")


def no_bias_in_qkv(model: ImpModel) -> None:
    model.decoder.layers[1].attention.qkv.bias.zero_()


def no_bias_in_mlp(model: ImpModel) -> None:
    model.decoder.layers[1].mlp.up.bias.zero_()


def no_bias_in_lm_head(model: ImpModel) -> None:
    model.decoder.lm_head.bias.zero_()


def no_bias_in_tower(model: ImpModel) -> None:
    model.vision.encoder.layers[1].self_attn.v_proj.bias.zero_()


def no_bias_in_projector(model: ImpModel) -> None:
    model.projector[0].bias.zero_()


def rotary_share(model: ImpModel) -> None:
    model.decoder.config = dataclasses.replace(model.decoder.config, rotary_dim=model.decoder.config.head_dim)


def rotary_share_halved(model: ImpModel) -> None:
    model.decoder.config = dataclasses.replace(model.decoder.config, rotary_dim=model.decoder.config.head_dim // 2)


def rotary_base(model: ImpModel) -> None:
    model.decoder.config = dataclasses.replace(model.decoder.config, rope_theta=10000.0)


def rotary_pairs(model: ImpModel) -> None:
    """Neighbours turn together, as in GPT-J: the same as half against half with q's and k's rows reordered."""
    config = model.decoder.config
    order = torch.arange(config.head_dim)
    order[: config.rotary_dim] = order[: config.rotary_dim].view(-1, 2).T.flatten()
    for layer in model.decoder.layers:
        for values in (layer.attention.qkv.weight, layer.attention.qkv.bias):
            heads = values[: 2 * config.hidden_size].view(-1, config.head_dim, *values.shape[1:])
            heads.copy_(heads[:, order])


def decoder_eps(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        layer.norm.eps = 1e-5


def final_eps(model: ImpModel) -> None:
    model.decoder.norm.eps = 1e-5


def tower_eps(model: ImpModel) -> None:
    for layer in model.vision.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-6


def last_tower_layer_used(model: ImpModel) -> None:
    layer = vision.Layer(model.config.vision)
    layer.load_state_dict(oracle().siglip.encoder.layers[-1].state_dict())
    model.vision.encoder.layers.append(layer)


def post_layernorm_applied(model: ImpModel) -> None:
    model.vision = nn.Sequential(model.vision, oracle().siglip.post_layernorm)


def no_norm_weight_in_decoder(model: ImpModel) -> None:
    model.decoder.layers[1].norm.weight.fill_(1)


def no_final_norm_weight(model: ImpModel) -> None:
    model.decoder.norm.weight.fill_(1)


def no_norm_weight_in_tower(model: ImpModel) -> None:
    model.vision.encoder.layers[1].layer_norm2.weight.fill_(1)


def swapped_q_and_k(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        for values in layer.attention.qkv.parameters():
            q, k, v = values.chunk(3)
            values.copy_(torch.cat((k, q, v)))


def swapped_k_and_v(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        for values in layer.attention.qkv.parameters():
            q, k, v = values.chunk(3)
            values.copy_(torch.cat((q, v, k)))


def interleaved_qkv(model: ImpModel) -> None:
    """Rows read head by head, as GPT-NeoX stacks them."""
    config = model.decoder.config
    for layer in model.decoder.layers:
        for values in (layer.attention.qkv.weight, layer.attention.qkv.bias):
            heads = values.view(config.num_heads, 3, config.head_dim, *values.shape[1:])
            values.copy_(heads.transpose(0, 1).reshape(values.shape))


def no_position_embedding(model: ImpModel) -> None:
    model.vision.embeddings.position_embedding.weight.zero_()


def patches_column_by_column(model: ImpModel) -> None:
    positions = model.vision.embeddings.position_embedding.weight
    side = int(len(positions) ** 0.5)
    positions.copy_(positions.view(side, side, -1).transpose(0, 1).reshape(positions.shape))


def mlp_behind_attention(model: ImpModel) -> None:
    def forward(block, x, rope, mask, cache, layer):
        x = x + block.attention(block.norm(x), rope, mask, cache, layer)
        return x + block.mlp(block.norm(x))

    for layer in model.decoder.layers:
        layer.forward = MethodType(forward, layer)


def padding_ignored(model: ImpModel) -> None:
    def forward(network, x, cache=None, padding=None):
        return decoder.Decoder.forward(network, x, cache, None)

    model.decoder.forward = MethodType(forward, model.decoder)


def gate_and_up_swapped(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        layer.mlp.up.weight.copy_(torch.cat(layer.mlp.up.weight.chunk(2)[::-1]))


def gelu_in_gate(model: ImpModel) -> None:
    def forward(mlp, x):
        gate, up = mlp.up(x).chunk(2, dim=-1)
        return mlp.down(F.gelu(gate) * up)

    for layer in model.decoder.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)


def mlp_beside_attention(model: ImpModel) -> None:
    def forward(block, x, rope, mask, cache, layer):
        return x + block.attention(block.norm(x), rope, mask, cache, layer) + block.mlp(block.mlp_norm(x))

    for layer in model.decoder.layers:
        layer.forward = MethodType(forward, layer)


def window_ignored(model: ImpModel) -> None:
    model.decoder.config = dataclasses.replace(model.decoder.config, window=None)


def window_one_longer(model: ImpModel) -> None:
    model.decoder.config = dataclasses.replace(model.decoder.config, window=model.decoder.config.window + 1)


def window_in_one_layer_more_or_less(model: ImpModel) -> None:
    first = model.decoder.config.window_from
    model.decoder.config = dataclasses.replace(model.decoder.config, window_from=1 if first == 0 else 0)


def shared_keys_in_another_order(model: ImpModel) -> None:
    config = model.decoder.config
    for layer in model.decoder.layers:
        keys = layer.attention.qkv.weight[config.hidden_size :].view(2, config.num_kv_heads, config.head_dim, -1)
        keys.copy_(keys.flip(1))


def mean_taken_off_in_norm(model: ImpModel) -> None:
    for layer in model.decoder.layers:
        norm = layer.mlp_norm
        layer.mlp_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, bias=False)
        layer.mlp_norm.weight = norm.weight


Mutation = Callable[[ImpModel], None]
MUTATIONS: tuple[Mutation, ...] = (
    exact_gelu_in_decoder,
    exact_gelu_in_tower,
    tanh_gelu_in_projector,
    no_bias_in_qkv,
    no_bias_in_mlp,
    no_bias_in_lm_head,
    no_bias_in_tower,
    no_bias_in_projector,
    rotary_share,
    rotary_base,
    rotary_pairs,
    decoder_eps,
    final_eps,
    tower_eps,
    last_tower_layer_used,
    post_layernorm_applied,
    no_norm_weight_in_decoder,
    no_final_norm_weight,
    no_norm_weight_in_tower,
    swapped_q_and_k,
    swapped_k_and_v,
    interleaved_qkv,
    no_position_embedding,
    patches_column_by_column,
    mlp_behind_attention,
    padding_ignored,
)
# Those of the other families: no_bias_in_qkv is Qwen1.5's own, the rest hold for both.
LLAMA_MUTATIONS: tuple[Mutation, ...] = (
    rotary_share_halved,
    rotary_base,
    decoder_eps,
    final_eps,
    no_norm_weight_in_decoder,
    swapped_q_and_k,
    swapped_k_and_v,
    gate_and_up_swapped,
    gelu_in_gate,
    mlp_beside_attention,
    mean_taken_off_in_norm,
)
CASES = (
    *(("old", mutate) for mutate in MUTATIONS),
    ("qwen", no_bias_in_qkv),
    *((layout, mutate) for layout in ("qwen", "phi3") for mutate in LLAMA_MUTATIONS),
    *(("qwen, window", mutate) for mutate in (window_ignored, window_one_longer, window_in_one_layer_more_or_less)),
    *(("phi3, window", mutate) for mutate in (window_ignored, window_one_longer, window_in_one_layer_more_or_less)),
    ("qwen, shared keys", shared_keys_in_another_order),
    ("phi3, both", shared_keys_in_another_order),
)


@torch.no_grad()
def mutated_difference(folder: Path, layout: str, mutate: Mutation) -> float:
    """Difference of the whole batch's scores after one mutation of a freshly loaded model."""
    model = load(folder)
    mutate(model)
    return difference(model, prompts(KEY_MAPS[layout]), cached=False)


def preprocessing_difference(size: int) -> float:
    """Largest difference between the kit's pixels and transformers' SigLIP processor's, over many shapes."""
    processor = SiglipImageProcessor(size={"height": size, "width": size}, resample=Image.Resampling.BICUBIC)
    rng = np.random.default_rng(0)
    gaps = []
    for shape in ((480, 640), (640, 480), (1, 1), (7, 900), (size, size)):
        picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        theirs = processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        gaps.append((to_pixels(picture, size) - theirs).abs().max().item())
    return max(gaps)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = {layout: write(layout, Path(root) / layout) for layout in KEY_MAPS}
        print("| layout | prompts | cache | largest difference of logits | equal greedy tokens |")
        print("| --- | --- | --- | --- | --- |")
        for layout, folder in folders.items():
            model, questions = load(folder), prompts(KEY_MAPS[layout])
            for chosen, rows in ((questions[:1], "one"), (questions, "three, left-padded")):
                for cached in (True, False):
                    gap, same = difference(model, chosen, cached), equal_tokens(model, chosen, cached)
                    print(f"| {layout} | {rows} | {'yes' if cached else 'no'} | {gap:.1e} | {same} of {STEPS} |")
        print("\n| family | oracle | standard deviation of logits | different tokens in the answers |")
        print("| --- | --- | --- | --- |")
        for family in FAMILIES:
            spread = torch.cat([prompt.logits for prompt in prompts(family)]).std().item()
            kinds = ", ".join(str(len(set(prompt.answer))) for prompt in prompts(family))
            print(f"| {family} | {type(oracle(family).language).__name__} | {spread:.2f} | {kinds} |")
        print("\n| pixels | largest difference to SiglipImageProcessor |")
        print("| --- | --- |")
        for size in (384, 140):
            print(f"| {size} x {size} | {preprocessing_difference(size):.1e} |")
        print("\n| layout | mutation | largest difference of logits |")
        print("| --- | --- | --- |")
        for layout, mutate in CASES:
            gap = mutated_difference(folders[layout], layout, mutate)
            print(f"| {layout} | {mutate.__name__.replace('_', ' ')} | {gap:.1e} |")


if __name__ == "__main__":
    main()
