"""config.json of a checkpoint -> what the network has to know, whichever names the file uses."""

import re
from collections.abc import Mapping
from math import isqrt

from imp_kit.checkpoints.files import MIXED, Fields, quote
from imp_kit.errors import CheckpointError
from imp_kit.model.config import FAMILIES, DecoderConfig, ImpConfig, VisionConfig

# What the tensors do not show, for the tower that the published checkpoints only name.
# Source: config.json of google/siglip-so400m-patch14-384 as transformers' SiglipVisionConfig reads it.
SO400M = re.compile(r"siglip-so400m-patch14-\d+")
SO400M_SHAPE = (1152, 4304, 14)  # width, width of the MLP, patch
SO400M_CONFIG = {
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
OTHER_TOWERS = re.compile(r"clip|dino|eva|vit|resnet|convnext|patch\d+", re.IGNORECASE)
TOWER_SETTINGS = ("vision_tower_config", "vision_config")  # of Imp's authors, of transformers' own models
VISION_KEYS = (
    *("hidden_size", "intermediate_size", "patch_size", "image_size"),
    *("num_attention_heads", "num_hidden_layers", "layer_norm_eps", "hidden_act"),
)
EPSILONS = {False: ("layer_norm_eps", "layer_norm_epsilon"), True: ("rms_norm_eps",)}  # by `gated`
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Far above any model of these families; a forged number must neither build layers without end nor overflow a size.
MAX_LAYERS, MAX_WIDTH = 1000, 100_000


def read_family(raw: Mapping, where: str = "config.json") -> str:
    """The key of FAMILIES that config.json names as its model_type. Raises CheckpointError for any other."""
    Fields(raw, where).expect(tuple(FAMILIES), "model_type")
    return raw["model_type"]


def parse_config(
    raw: Mapping,
    shapes: Mapping[str, tuple[int, ...]],
    where: str = "config.json",
    generation: Mapping | None = None,
) -> ImpConfig:
    """Read a checkpoint's configuration.

    `raw` is config.json, with the names of the first Phi code (`n_embd`, ...) or of transformers (`hidden_size`, ...).
    `shapes` maps the tower's tensor names, without the part before `vision_model.`, to their shapes. `generation`
    is generation_config.json, whose end tokens are added to those of config.json.
    Raises CheckpointError where something is missing, unknown, or contradicts the tensors.
    """
    read = Fields(raw, where)
    family = read_family(raw, where)
    gated = FAMILIES[family]["gated"]
    if gated:  # Imp's 4B keeps Phi-2's "activation_function" beside the "hidden_act" that its code reads
        read.expect(("silu",), "hidden_act", "activation_function", default="silu")
    else:
        for name in ("activation_function", "hidden_act"):
            read.expect(TANH_GELU, name, default=TANH_GELU[0])
    read.expect(("mlp2x_gelu",), "mm_projector_type", default="mlp2x_gelu")
    read.expect((False,), "tie_word_embeddings", default=False)
    read.expect((False,), "qk_layernorm", default=False)
    read.expect((False,), "mm_use_im_start_end", default=False)  # these two would change the prompt
    read.expect((False,), "mm_use_im_patch_token", default=False)
    read.expect(("patch",), "mm_vision_select_feature", default="patch")
    read.expect(("square", "pad"), "image_aspect_ratio", default="square")

    hidden = read.number("hidden_size", "n_embd", limit=MAX_WIDTH)
    heads = read.number("num_attention_heads", "n_head")
    kv_heads = read.number("num_key_value_heads", "n_head_kv", default=heads)
    if not gated:
        read.expect((heads,), "num_key_value_heads", "n_head_kv", default=heads)
    if hidden % heads:
        raise CheckpointError(f"{where}: hidden_size {hidden} is not a multiple of {heads} attention heads.")
    if heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads cannot share {kv_heads} of keys and values.")
    read.expect((hidden // heads,), "head_dim", default=hidden // heads)
    rotary, theta = _parse_rotary(read, hidden // heads, gated)
    positions = read.number("max_position_embeddings", "n_positions")
    window, window_from = _parse_window(read, family, positions)
    decoder = DecoderConfig(
        vocab_size=read.number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.number("intermediate_size", "n_inner", default=4 * hidden),
        num_layers=read.number("num_hidden_layers", "n_layer", limit=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        max_positions=positions,
        rotary_dim=rotary,
        rope_theta=theta,
        eps=read.number(*EPSILONS[gated], default=1e-6 if family == "imp_qwen2" else 1e-5, kind=float),
        window=window,
        window_from=window_from,
        **FAMILIES[family],
    )
    ends = read_ends(raw, decoder.vocab_size, where)
    if generation:
        generation_file = where.removesuffix("config.json") + "generation_config.json"
        ends = tuple(dict.fromkeys((*ends, *read_ends(generation, decoder.vocab_size, generation_file))))
    return ImpConfig(
        family=family,
        decoder=decoder,
        vision=_parse_vision(raw, shapes, where),
        pad=read.value("image_aspect_ratio") == "pad",
        eos_token_ids=ends,
    )


def read_ends(raw: Mapping, vocab_size: int, where: str) -> tuple[int, ...]:
    """The token ids that end an answer, of config.json or generation_config.json: a number or a list of them."""
    given = raw.get("eos_token_id")
    ends = tuple(given) if isinstance(given, list) else () if given is None else (given,)
    if not all(type(id) is int and 0 <= id < vocab_size for id in ends):
        raise CheckpointError(f"{where}: eos_token_id is {quote(given)}; expected ids below {vocab_size}. {MIXED}")
    return ends


def _parse_rotary(read: Fields, head: int, gated: bool) -> tuple[int, float]:
    """Rotary dimensions of a head and their base, also where transformers 5 keeps them: in `rope_parameters`."""
    rope: dict = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = read.value(name, default={})
        plain = isinstance(given, dict) and not any(isinstance(value, dict) for value in given.values())
        unknown = not plain or any(given.get(key, "default") != "default" for key in ("rope_type", "type"))
        if unknown or any(rope[key] != given[key] for key in rope.keys() & given.keys()):
            raise CheckpointError(f"{read.where}: {name} is {quote(given)}; this kit knows only the default rope_type.")
        rope |= given
    values, share = {}, 1.0 if gated else 0.4
    for name, default in (("rope_theta", 10000.0), ("partial_rotary_factor", share)):
        inner = Fields(rope, f"{read.where}, rope_parameters")
        values[name] = (inner if inner.value(name) is not None else read).number(name, default=default, kind=float)
        if read.value(name, default=values[name]) != values[name]:
            raise CheckpointError(
                f"{read.where}: {name} is {quote(read.value(name))}, but {values[name]} in rope_parameters."
            )
    rotary = int(values["partial_rotary_factor"] * head)
    if not gated and read.value("rotary_dim") is not None:  # with other families' settings it is left over from Phi-2
        if read.value("partial_rotary_factor", default=rope.get("partial_rotary_factor")) is not None:
            read.expect((rotary,), "rotary_dim")
        rotary = read.value("rotary_dim")
    if not isinstance(rotary, int) or not 0 < rotary <= head or rotary % 2:
        raise CheckpointError(f"{read.where}: {quote(rotary)} rotary dimensions do not fit heads of {head}.")
    return rotary, values["rope_theta"]


def _parse_window(read: Fields, family: str, positions: int) -> tuple[int | None, int]:
    """How many positions attention reaches back, and from which layer on: as each family's code reads config.json."""
    window, first, raw = None, 0, read.raw
    if family == "imp_phi3" and read.value("sliding_window") is not None:
        window = read.number("sliding_window")
    elif family == "imp_qwen2":
        read.expect((True, False), "use_sliding_window", default=False)
        if read.value("use_sliding_window") and raw.get("sliding_window", 0) is not None:
            window = read.number("sliding_window", default=4096)
            zero = raw.get("max_window_layers") == 0 and raw["max_window_layers"] is not False
            first = 0 if zero else read.number("max_window_layers", default=28)
    if read.value("layer_types") is not None:  # how transformers 5 spells the same
        layers = read.number("num_hidden_layers", limit=MAX_LAYERS)
        full = layers if window is None else min(first, layers)
        read.expect((["full_attention"] * full + ["sliding_attention"] * (layers - full),), "layer_types")
    return (window, first) if window is not None and window < positions else (None, 0)


def _parse_vision(raw: Mapping, shapes: Mapping[str, tuple[int, ...]], where: str) -> VisionConfig:
    """The tower's geometry from the tensors' shapes, then the settings of the tower, then its name if that is known."""
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
    given, source = {}, f"the tower's name, {quote(tower)},"
    unnamed = (hidden, intermediate, patch) == SO400M_SHAPE and not OTHER_TOWERS.search(tower)
    if SO400M.fullmatch(tower) or unnamed:
        # 384 = 27 x 14 + 6 is the one size that leaves a remainder; Imp's smaller images divide by the patch.
        given = {**SO400M_CONFIG, "image_size": 384 if positions == 27**2 else isqrt(positions) * patch}
    stated: dict = {}
    for name in TOWER_SETTINGS:
        settings = raw.get(name)
        if settings is None:
            continue
        source = f"{name} in {where}"
        if not isinstance(settings, dict):
            raise CheckpointError(f"{source} is {quote(settings)}, not an object of names and values.")
        for key in stated.keys() & settings.keys():
            if key in VISION_KEYS and stated[key] != settings[key]:
                raise CheckpointError(
                    f"{source} says {key} {quote(settings[key])}, but {TOWER_SETTINGS[0]} says {quote(stated[key])}."
                )
        stated |= settings
    if SO400M.fullmatch(tower) and stated.get("image_size") == 384 and isqrt(positions) ** 2 == positions < 27**2:
        # Imp-v1.5-3B-196 names the tower for 384 pixels, and its settings may be a copy of that tower's own.
        del stated["image_size"]
    given |= stated
    for name, actual in (("hidden_size", hidden), ("intermediate_size", intermediate), ("patch_size", patch)):
        if given.get(name, actual) != actual:
            raise CheckpointError(f"{source} says {name} {quote(given[name])}, but the tensors have {actual}.")
    read = Fields(given, source)
    read.expect(("gelu_pytorch_tanh",), "hidden_act", default="gelu_pytorch_tanh")
    heads = read.number("num_attention_heads")
    # The tensors show neither of these: a remainder of pixels leaves no trace, and files may lack the last layer.
    image = read.number("image_size")
    layers = read.number("num_hidden_layers", limit=MAX_LAYERS)
    select = raw.get("mm_vision_select_layer", -2)
    # Hidden state 0 is the embedding, so state -1 comes after all the layers and -2 leaves the last one out.
    if not isinstance(select, int) or isinstance(select, bool) or not -layers <= select <= -1:
        raise CheckpointError(f"{where}: mm_vision_select_layer is {quote(select)}; expected -1 to -{layers}.")
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
