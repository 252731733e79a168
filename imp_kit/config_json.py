"""config.json of a checkpoint -> what the network has to know, whichever names the file uses."""

import re
from collections.abc import Mapping
from math import isqrt

from imp_kit.errors import CheckpointError
from imp_kit.model.config import FAMILIES, DecoderConfig, ImpConfig, VisionConfig
from imp_kit.stored import Fields, shown

# What cannot be read off the tensors, for the tower that the published checkpoints only name.
# Source: config.json of google/siglip-so400m-patch14-384 as transformers' SiglipVisionConfig reads it.
SO400M = re.compile(r"siglip-so400m-patch14-\d+")
SO400M_CONFIG = {
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Far above any model of these families; a forged number must neither build layers without end nor overflow a size.
MAX_LAYERS, MAX_WIDTH = 1000, 100_000


def read_family(raw: Mapping, where: str = "config.json") -> str:
    """The key of FAMILIES that config.json names as its model_type. Raises CheckpointError for any other."""
    Fields(raw, where).expect(tuple(FAMILIES), "model_type")
    return raw["model_type"]


def parse_config(raw: Mapping, shapes: Mapping[str, tuple[int, ...]], where: str = "config.json") -> ImpConfig:
    """Read a checkpoint's configuration.

    `raw` is config.json, with the names of the first Phi code (`n_embd`, ...) or of transformers (`hidden_size`, ...).
    `shapes` maps the tower's tensor names, without what stands before `vision_model.`, to their shapes.
    Raises CheckpointError where something is missing, unknown, or contradicts the tensors.
    """
    read = Fields(raw, where)
    family = read_family(raw, where)
    gated = FAMILIES[family]["gated"]
    activations = ("silu",) if gated else TANH_GELU
    read.expect(activations, "activation_function", "hidden_act", default=activations[0])
    read.expect(("mlp2x_gelu",), "mm_projector_type", default="mlp2x_gelu")
    read.expect((False,), "tie_word_embeddings", default=False)
    read.expect((False,), "qk_layernorm", default=False)
    read.expect((None,), "rope_scaling")
    read.expect((None,), "rope_parameters")  # where transformers 5 keeps the rotary base and share
    read.expect((False,), "mm_use_im_start_end", default=False)  # these two would change the prompt
    read.expect((False,), "mm_use_im_patch_token", default=False)
    read.expect(("patch",), "mm_vision_select_feature", default="patch")
    read.expect(("square", "pad"), "image_aspect_ratio", default="square")

    hidden = read.number("hidden_size", "n_embd", limit=MAX_WIDTH)
    heads = read.number("num_attention_heads", "n_head")
    read.expect((heads,), "num_key_value_heads", "n_head_kv", default=heads)
    if hidden % heads:
        raise CheckpointError(f"{where}: hidden_size {hidden} is not a multiple of {heads} attention heads.")
    rotary = read.value("rotary_dim")
    if rotary is None:
        share = read.number("partial_rotary_factor", default=1.0 if gated else 0.4, kind=float)
        rotary = int(share * (hidden // heads))
    if not isinstance(rotary, int) or not 0 < rotary <= hidden // heads or rotary % 2:
        raise CheckpointError(f"{where}: {shown(rotary)} rotary dimensions do not fit heads of {hidden // heads}.")
    positions = read.number("max_position_embeddings", "n_positions")
    if read.value("use_sliding_window", default=True) and read.value("sliding_window") is not None:
        # Behind the window attention would have to forget; the kit stays within it.
        positions = min(positions, read.number("sliding_window"))
    decoder = DecoderConfig(
        vocab_size=read.number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.number("intermediate_size", "n_inner", default=4 * hidden),
        num_layers=read.number("num_hidden_layers", "n_layer", limit=MAX_LAYERS),
        num_heads=heads,
        max_positions=positions,
        rotary_dim=rotary,
        rope_theta=read.number("rope_theta", default=10000.0, kind=float),
        eps=read.number("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", default=1e-5, kind=float),
        **FAMILIES[family],
    )
    eos = raw.get("eos_token_id")
    eos = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    if not all(type(id) is int and 0 <= id < decoder.vocab_size for id in eos):
        raise CheckpointError(
            f"{where}: eos_token_id is {shown(raw['eos_token_id'])}; expected ids below {decoder.vocab_size}."
        )
    return ImpConfig(
        family=family,
        decoder=decoder,
        vision=_parse_vision(raw, shapes, where),
        pad=read.value("image_aspect_ratio") == "pad",
        eos_token_ids=eos,
    )


def _parse_vision(raw: Mapping, shapes: Mapping[str, tuple[int, ...]], where: str) -> VisionConfig:
    """The tower's geometry from the tensors' shapes, then `vision_config`, then the known tower's name."""
    prefix = "vision_model.encoder.layers."

    def sizes(name: str, count: int) -> tuple[int, ...]:
        shape = shapes.get(name)
        if shape is None or len(shape) < count or not all(0 < size <= MAX_WIDTH for size in shape):
            problem = "is missing" if shape is None else f"has the shape {shape}"
            raise CheckpointError(f"The checkpoint has no readable vision tower: {name} {problem}.")
        return shape[:count]

    hidden, _, patch, _ = sizes("vision_model.embeddings.patch_embedding.weight", 4)
    (positions,) = sizes("vision_model.embeddings.position_embedding.weight", 1)
    (intermediate,) = sizes(prefix + "0.mlp.fc1.weight", 1)
    numbers = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    present = 1 + max(int(number) for number in numbers if number.isdecimal())

    tower = raw.get("mm_vision_tower")
    tower = tower.rstrip("/").split("/")[-1] if isinstance(tower, str) else ""
    given, source = {}, f"the tower's name, {shown(tower)},"
    if SO400M.fullmatch(tower):
        # 384 = 27 x 14 + 6 is the one size that leaves a remainder; Imp's smaller pictures divide by the patch.
        given = {**SO400M_CONFIG, "image_size": 384 if positions == 27**2 else isqrt(positions) * patch}
    if raw.get("vision_config") is not None:
        source = f"vision_config in {where}"
        if not isinstance(raw["vision_config"], dict):
            raise CheckpointError(f"{source} is {shown(raw['vision_config'])}, not an object of names and values.")
        given = {**given, **raw["vision_config"]}
    for name, actual in (("hidden_size", hidden), ("intermediate_size", intermediate), ("patch_size", patch)):
        if given.get(name, actual) != actual:
            raise CheckpointError(f"{source} says {name} {shown(given[name])}, but the tensors have {actual}.")
    read = Fields(given, source)
    read.expect(("gelu_pytorch_tanh",), "hidden_act", default="gelu_pytorch_tanh")
    heads = read.number("num_attention_heads")
    # Neither can be told from the tensors: a remainder of pixels leaves no trace, and files may lack the last layer.
    image = read.number("image_size")
    layers = read.number("num_hidden_layers", limit=MAX_LAYERS)
    select = raw.get("mm_vision_select_layer", -2)
    # Hidden state 0 is the embedding, so state -1 comes after all the layers and -2 leaves the last one out.
    if not isinstance(select, int) or isinstance(select, bool) or not -layers <= select <= -1:
        raise CheckpointError(f"{where}: mm_vision_select_layer is {shown(select)}; expected -1 to -{layers}.")
    used = layers + 1 + select
    if hidden % heads or (image // patch) ** 2 != positions or not used <= present <= layers:
        raise CheckpointError(
            f"{source} says {heads} heads, {layers} layers and pictures of {image} pixels; "
            f"the tensors have width {hidden}, {present} layers and {positions} positions for patches of {patch}."
        )
    return VisionConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        used_layers=used,
        patch_size=patch,
        image_size=image,
        eps=read.number("layer_norm_eps", default=1e-6, kind=float),
    )
