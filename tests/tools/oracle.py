"""A tiny Imp put together from transformers' own classes: what the kit's network is compared with.

Nothing in here uses the kit. `write_checkpoint` writes such a model in the published key layouts, straight from
transformers' state dicts, so a mistake in the kit's own table of names cannot cancel itself out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

try:
    from transformers import Phi3Config, Phi3ForCausalLM
except ImportError:  # before 4.41; Phi-3 is Mistral with two of its products fused, so Mistral is as good an oracle
    Phi3Config, Phi3ForCausalLM = MistralConfig, MistralForCausalLM
try:
    from transformers import SiglipImageProcessorPil as SiglipImageProcessor
except ImportError:  # before 5.x, where the plain one resizes with PIL and not with torchvision
    from transformers import SiglipImageProcessor  # noqa: F401 - for parity.py and the tests

# No size is a multiple of another by chance and no value is a default of the kit, so that none can be ignored
# unseen. The epsilons are large because at 1e-5 no test of an fp32 network could tell them from 1e-6.
DECODER = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1000.0,
    "layer_norm_eps": 0.05,
}
TOWER = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "patch_size": 14,
    "image_size": 61,  # four patches and a remainder of 5 pixels, as 384 leaves one
    "layer_norm_eps": 0.03,
}
# The tower of the published checkpoints, google/siglip-so400m-patch14-384.
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
    "layer_norm_eps": 1e-6,
}
OLD_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
LLAMA = {  # the same sizes as Qwen1.5 and Phi-3 call them
    **{name: value for name, value in DECODER.items() if name not in ("partial_rotary_factor", "layer_norm_eps")},
    "num_key_value_heads": 4,
    "rms_norm_eps": 0.05,
}
FAMILIES = {  # model_type of the checkpoint -> configuration and class of its language model, sizes
    "imp": (PhiConfig, PhiForCausalLM, DECODER),
    "imp_qwen2": (Qwen2Config, Qwen2ForCausalLM, {**LLAMA, "use_sliding_window": False}),
    "imp_phi3": (Phi3Config, Phi3ForCausalLM, {**LLAMA, "pad_token_id": 0, "sliding_window": None}),
}
PICKY = ("lm_head.weight", "q_proj.weight", "k_proj.weight", "qkv_proj.weight")
# The tokenizer fills the vocabulary up to these and the model has some rows more, as Phi-2 does.
SPECIAL = {"<|endoftext|>": 297, "</s>": 298, "<image>": 299}
CONTROL = {  # the control tokens of each family's tokenizer
    "imp": SPECIAL,
    "imp_qwen2": {"<|endoftext|>": 297, "<|im_start|>": 298, "<|im_end|>": 299},
    "imp_phi3": {"<|endoftext|>": 297, "<|system|>": 298, "<|user|>": 299, "<|assistant|>": 300, "<|end|>": 301},
}


def sizes_of(config: Mapping) -> dict:
    """The language model's sizes in config.json, whichever names it uses, as transformers' classes take them."""
    width, heads = (config.get(name, config.get(OLD_NAMES[name])) for name in ("hidden_size", "num_attention_heads"))
    defaults = {"intermediate_size": 4 * width, "rope_theta": 10000.0, "num_key_value_heads": heads, "pad_token_id": 0}
    if "rotary_dim" in config:
        defaults["partial_rotary_factor"] = config["rotary_dim"] * heads / width
    sizes = {}
    for name in FAMILIES[config["model_type"]][2]:
        value = config.get(name, config.get(OLD_NAMES.get(name)))
        sizes[name] = defaults.get(name) if value is None else value
    return sizes


class Oracle:
    """Tower, projector and language model of a family; parameters as yet at rest."""

    def __init__(self, family: str = "imp", decoder: Mapping | None = None, tower: Mapping = TOWER):
        config, model, sizes = FAMILIES[family]
        self.family, self.decoder, self.tower = family, dict(decoder or sizes), dict(tower)
        self.language = model(config(**self.decoder, attn_implementation="eager")).eval()
        siglip = SiglipVisionModel(SiglipVisionConfig(**tower, attn_implementation="eager")).eval()
        self.siglip = getattr(siglip, "vision_model", siglip)  # a shell around the tower, before 5.x
        width = self.decoder["hidden_size"]
        self.projector = nn.Sequential(nn.Linear(tower["hidden_size"], width), nn.GELU(), nn.Linear(width, width))

    @torch.no_grad()
    def randomise(self, seed: int) -> None:
        """Give every parameter a value that counts, biases and norms too, with activations of order 1.

        With transformers' own initial values (zero biases, unit norms, weights of 0.02) the comparison is blind.
        """
        generator = torch.Generator().manual_seed(seed)
        for part in (self.siglip, self.projector, self.language):
            for name, parameter in part.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.endswith("bias"):
                    noise *= 0.3
                elif parameter.ndim == 1:
                    noise = 1 + 0.3 * noise
                elif "embed_tokens" not in name and "position_embedding" not in name:
                    noise /= parameter[0].numel() ** 0.5
                # Scores as far apart as a trained model's, and attention that picks: else the answer is one token
                # over and over, and comparing tokens shows little. LLaMA's blocks need less of it, and with more
                # their fp32 rounding grows beyond what the comparison is to find.
                if part is self.language and name.endswith(PICKY):
                    noise *= 3 if self.family == "imp" or "lm_head" in name else 2
                parameter.copy_(noise)

    @torch.no_grad()
    def features(self, pixels: Tensor, select: int = -2) -> Tensor:
        """Pixels (batch, 3, size, size) -> the tower's hidden state `select`, before `post_layernorm`."""
        return self.siglip(pixels, output_hidden_states=True).hidden_states[select]

    @torch.no_grad()
    def embed(self, before: Sequence[int], pixels: Tensor, after: Sequence[int], select: int = -2) -> Tensor:
        """A prompt with one picture, (3, size, size), as embeddings (1, n, hidden_size)."""
        words = self.language.get_input_embeddings()
        picture = self.projector(self.features(pixels[None], select))
        return torch.cat((words(torch.tensor([before])), picture, words(torch.tensor([after]))), dim=1)

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (1, n, vocab_size) after each position, everything computed anew."""
        return self.language(inputs_embeds=embeddings, use_cache=False).logits

    @torch.no_grad()
    def greedy(self, embeddings: Tensor, steps: int) -> list[int]:
        """The likeliest token, `steps` times, without any cache."""
        ids = []
        for _ in range(steps):
            ids.append(int(self.logits(embeddings)[0, -1].argmax()))
            embeddings = torch.cat((embeddings, self.language.get_input_embeddings()(torch.tensor([ids[-1:]]))), dim=1)
        return ids


def make_oracle(seed: int = 0, family: str = "imp") -> Oracle:
    """A tiny Imp with random weights."""
    oracle = Oracle(family)
    oracle.randomise(seed)
    return oracle


def checkpoint_tensors(oracle: Oracle, layout: str, spares: bool = True) -> dict[str, Tensor]:
    """All tensors under a checkpoint's names; `spares` keeps those of the tower that nobody reads."""
    language, layers = oracle.language.state_dict(), oracle.decoder["num_hidden_layers"]
    stem = "transformer." if layout == "old" else "model."
    tensors = _old_phi(language, layers) if layout == "old" else dict(language)
    if oracle.family == "imp_phi3" and Phi3ForCausalLM is MistralForCausalLM:
        tensors = _fused_mistral(tensors, layers)
    for name, tensor in oracle.projector.state_dict().items():
        tensors[f"{stem}mm_projector.{name}"] = tensor
    last = f"encoder.layers.{oracle.tower['num_hidden_layers'] - 1}."
    for name, tensor in oracle.siglip.state_dict().items():
        if spares or not name.startswith((last, "post_layernorm.", "head.")):
            tensors[f"{stem}vision_tower.vision_tower.vision_model.{name}"] = tensor
    return tensors


def _old_phi(phi: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Rename transformers' Phi to what the first Phi code called its parts, queries, keys and values in one."""
    tensors = {"transformer.embd.wte.weight": phi["model.embed_tokens.weight"]}
    for kind in ("weight", "bias"):
        tensors[f"lm_head.ln.{kind}"] = phi[f"model.final_layernorm.{kind}"]
        tensors[f"lm_head.linear.{kind}"] = phi[f"lm_head.{kind}"]
        for i in range(layers):
            old, new = f"transformer.h.{i}.", f"model.layers.{i}."
            qkv = [phi[f"{new}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{old}mixer.Wqkv.{kind}"] = torch.cat(qkv)
            tensors[f"{old}mixer.out_proj.{kind}"] = phi[f"{new}self_attn.dense.{kind}"]
            tensors[f"{old}ln.{kind}"] = phi[f"{new}input_layernorm.{kind}"]
            tensors[f"{old}mlp.fc1.{kind}"] = phi[f"{new}mlp.fc1.{kind}"]
            tensors[f"{old}mlp.fc2.{kind}"] = phi[f"{new}mlp.fc2.{kind}"]
    return tensors


def _fused_mistral(mistral: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Mistral's tensors as Phi-3 stores them: queries, keys and values in one, gate and up in one."""
    tensors = dict(mistral)
    for i in range(layers):
        for fused, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            stem = f"model.layers.{i}.{fused.split('.')[0]}."
            values = [tensors.pop(f"{stem}{part}_proj.weight") for part in parts]
            tensors[f"model.layers.{i}.{fused}_proj.weight"] = torch.cat(values)
    return tensors


def config_values(oracle: Oracle, names: str) -> dict:
    """config.json of a checkpoint, with the "old" or the "new" names of the same values."""
    values = {
        **oracle.decoder,
        "model_type": oracle.family,
        "architectures": ["ImpForCausalLM"],
        "hidden_act": "gelu_new" if oracle.family == "imp" else "silu",
        "tie_word_embeddings": False,
        "eos_token_id": SPECIAL["<|endoftext|>"],
        "image_aspect_ratio": "square",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "vision_config": {**oracle.tower, "hidden_act": "gelu_pytorch_tanh"},
    }
    if names == "old":
        share = values.pop("partial_rotary_factor")
        values["rotary_dim"] = int(share * values["hidden_size"]) // values["num_attention_heads"]
        values = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    return values


def write_checkpoint(
    oracle: Oracle,
    folder: Path,
    layout: str = "old",
    *,
    names: str | None = None,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    spares: bool = True,
    **changes,
) -> Path:
    """Write config.json, safetensors files and a tokenizer; return `folder`.

    `layout` and `names` ("old" or "new") choose the tensors' and config.json's names; `names` follows `layout`
    unless given. `changes` replace values of config.json; None takes one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config_values(oracle, names or layout), **changes}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    tensors = {name: t.to(dtype).contiguous() for name, t in checkpoint_tensors(oracle, layout, spares).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        places = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = dict(list(tensors.items())[shard::shards])
            save_file(part, folder / file, {"format": "pt"})
            places.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    write_tokenizer(folder, CONTROL[oracle.family])
    return folder


def write_tokenizer(folder: Path, control: Mapping[str, int] = SPECIAL) -> None:
    """A small byte-level BPE with some control tokens, as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(control.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "A curious user asks the assistant a question about the picture; the assistant gives a helpful answer."
    tokenizer.train_from_iterator([text] * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    for token, place in control.items():
        if tokenizer.token_to_id(token) != place:
            raise ValueError(f"{token} has the id {tokenizer.token_to_id(token)}, not {place}")
    tokenizer.save(str(folder / "tokenizer.json"))


def change_json(folder: Path, change: Callable[[dict], object], file: str = "config.json") -> None:
    """Change the object in a JSON file of a checkpoint, to spoil it."""
    values = json.loads((folder / file).read_text("utf-8"))
    change(values)
    (folder / file).write_text(json.dumps(values), "utf-8")
