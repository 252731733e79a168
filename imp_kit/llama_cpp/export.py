"""A checkpoint -> two GGUF files, language model and tower, with what other programs need beside them.

Tensors pass one after the other, in pieces, so that a 3B needs little memory; a file gets its name once it is whole.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.checkpoints.files import check_not_exported, check_space, file_names, follow, is_exported
from imp_kit.checkpoints.hub import HUB_IDS, NANO, Snapshot, digest, find, loaded_files
from imp_kit.checkpoints.load import check_tokenizer
from imp_kit.checkpoints.plan import LoadPlan, plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.checkpoints.tokenizer_files import read_tokenizer, tokenizer_names
from imp_kit.errors import CheckpointError, SettingError
from imp_kit.llama_cpp.exported import Exported
from imp_kit.llama_cpp.library import quantize
from imp_kit.llama_cpp.names import ARCHITECTURES, decoder_targets, tower_targets
from imp_kit.llama_cpp.tensors import BLOCK, BLOCKLESS, PLAIN, Tensors
from imp_kit.llama_cpp.texts import chat_template, instructions, modelfile
from imp_kit.llama_cpp.vocabulary import Vocabulary, read_vocabulary
from imp_kit.prompts import TEMPLATES
from imp_kit.system.extras import require

MIXED_BITS = ("q6_k", "q5_k_m", "q4_k_m")  # types for which llama.cpp's own quantizer is needed
TYPES = (*PLAIN, *MIXED_BITS)
LICENSE = "apache-2.0"  # of the published checkpoints and of imp-nano
PHI3_TOKENS = frozenset({"<unk>", "<s>", "</s>", "<|endoftext|>"})
SHORT_CONTEXT = 256  # positions beside the image that a context has to have


def export_gguf(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    type: str = "q8_0",
    *,
    revision: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write a checkpoint for llama.cpp into the folder `out`; return its files.

    They are the language model in `type`, one of TYPES, the tower with its projector in f16 (f32 where `type` is f32),
    ollama's Modelfile and README.txt. Beside them stand a description and the tokenizer, with which
    `imp_kit.load(out, engine="llama.cpp")` needs the checkpoint no more. What is there of the same names is replaced
    once the new file is whole; one export at a time may write to a folder.
    Raises CheckpointError for what GGUF cannot hold, SettingError for an unknown type, a missing package or too little
    disk, all before anything is written.
    """
    check_type(type)
    return export_snapshot(find(checkpoint, revision), out, type, progress=progress)


def check_type(type: str, option: str = "type") -> None:
    """Raise SettingError for an unknown type, or a package that it needs. `option` is what the user calls it."""
    if type not in TYPES:
        raise SettingError(f"{option} is {type!r}; choose from {', '.join(TYPES)}.")
    require("gguf", what="The export")
    if type in MIXED_BITS:
        require("llama-cpp", what=f"The type {type} is made by llama.cpp's own quantizer and")


def export_snapshot(snapshot: Snapshot, out: str | os.PathLike, type: str, *, progress: bool = True) -> list[Path]:
    """`export_gguf` for a checkpoint on disk and a type that was checked."""
    check_not_exported(snapshot.folder)
    plan, tokenizer = plan_folder(snapshot.folder), TextTokenizer(snapshot.folder)
    check_tokenizer(tokenizer, plan)
    for problem in plan.problems.values():
        raise CheckpointError(problem)
    vocabulary = read_vocabulary(read_tokenizer(snapshot.folder), plan.model.config.decoder.vocab_size)
    _check_shapes(plan, type)
    folder, name = Path(os.path.abspath(os.path.expanduser(out))), _file_name(snapshot)
    decoder, tower = folder / f"{name}-{type.upper()}.gguf", folder / f"mmproj-{name}-{_tower_type(type).upper()}.gguf"
    context = _context(plan)
    sizes = replace(plan.model.config.decoder, max_positions=context, window=None)
    hashed = digest(snapshot.folder, loaded_files(snapshot.folder))
    described = Exported(folder, snapshot.name, snapshot.revision, hashed, replace(plan.model.config, decoder=sizes))
    source = {"imp_kit.version": __version__, "imp_kit.source": snapshot.name, "imp_kit.source_sha256": hashed}
    if snapshot.name in (NANO, *HUB_IDS.values()):
        source["general.license"] = LICENSE
    if snapshot.revision:
        source["imp_kit.source_revision"] = snapshot.revision
    writing = {
        tower: Tensors(plan, tower_targets(plan.model), _tower_type(type)),
        decoder: Tensors(plan, decoder_targets(plan.model), "f16" if type in MIXED_BITS else type),
    }
    needed = sum(tensors.nbytes for tensors in writing.values()) * (1.5 if type in MIXED_BITS else 1)
    check_space(folder, needed, "the export")
    metadata = {
        tower: _tower_metadata(plan, name) | source,
        decoder: _decoder_metadata(plan, name, vocabulary, tokenizer) | source,
    }
    _check_folder(folder, hashed)
    total = sum(tensors.nbytes for tensors in writing.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="export", disable=not progress) as bar:
        for file, tensors in writing.items():
            with _unfinished(file) as partial:
                tensors.write(partial, _architecture(plan) if file == decoder else "clip", metadata[file], bar.update)
                if file == decoder and type in MIXED_BITS:
                    quantize(partial, type)
    side, template = plan.model.config.vision.image_size, TEMPLATES[plan.model.config.family]
    texts = {
        "Modelfile": modelfile(name, template, decoder.name, tower.name, context, source.get("general.license")),
        "README.txt": instructions(name, decoder.name, tower.name, exact=vocabulary.exact, side=side),
    }
    for text_name, text in texts.items():
        (folder / text_name).write_text(text, "utf-8")
    for file_name in tokenizer_names(file_names(snapshot.folder)):
        shutil.copyfile(follow(snapshot.folder / file_name), folder / file_name)
    described.write()
    return [decoder, tower, *(folder / text_name for text_name in texts)]


def _check_folder(folder: Path, hashed: str) -> None:
    """Make the folder. Raises SettingError where the files would replace those of another checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"out is {str(folder)!r}, where no folder can be made ({error.strerror}).") from None
    if (folder / "config.json").exists():
        raise SettingError(f"out is {str(folder)!r}, which holds a checkpoint; choose a folder of its own.")
    if is_exported(folder) and (there := Exported.read(folder)).digest != hashed:
        raise SettingError(f"out is {str(folder)!r}, which holds an export of {there.name}; choose another folder.")


def _tower_type(type: str) -> str:
    return "f32" if type == "f32" else "f16"


def _architecture(plan: LoadPlan) -> str:
    return ARCHITECTURES[plan.model.config.family]


def _file_name(snapshot: Snapshot) -> str:
    """The checkpoint's short name, as a part of a file's."""
    short = {hub_id: name for name, hub_id in HUB_IDS.items()}.get(snapshot.name, snapshot.name.split("/")[-1])
    return re.sub(r"[^\w.-]+", "-", short).strip("-.") or "imp"


def model_name(name: str, architecture: str, tokens: list[str]) -> str:
    """The name that the metadata give a model: by "phi3" in it llama.cpp knows that control tokens remove blanks.

    It then looks for four tokens and fails where they are not there, so no other model may be called so.
    """
    if architecture == "phi3" and PHI3_TOKENS.issubset(tokens):
        return name if "phi3" in name.lower() else f"{name}-phi3"
    return re.sub("phi-?3", "phi", name, flags=re.IGNORECASE)


def _check_shapes(plan: LoadPlan, type: str) -> None:
    """Raise CheckpointError for what GGUF or llama.cpp's code cannot hold."""
    config = plan.model.config
    if type not in BLOCKLESS:
        parameters = dict(plan.model.named_parameters())
        for target in decoder_targets(plan.model):
            shape = parameters[target.parameter].shape
            if len(shape) > 1 and shape[1] % BLOCK:
                raise CheckpointError(
                    f"{plan.where}: {target.parameter} has {shape[1]} columns, and {type} holds them in blocks of "
                    f"{BLOCK}. Choose the type f16."
                )
    if config.vision.hidden_size == config.vision.intermediate_size:
        raise CheckpointError(
            f"{plan.where}: the tower's layers are {config.vision.hidden_size} wide inside and outside, and llama.cpp "
            "would mistake one for the other."
        )
    if _context(plan) < config.vision.num_patches + SHORT_CONTEXT < config.decoder.max_positions:
        raise CheckpointError(
            f"{plan.where}: attention reaches back {config.decoder.window} positions, which llama.cpp does not know of "
            "in this family; a shorter context than that holds no picture with a question."
        )


def _context(plan: LoadPlan) -> int:
    """Positions that llama.cpp may use: up to a window's end no position is out of reach, and it knows no windows."""
    decoder = plan.model.config.decoder
    return min(decoder.max_positions, decoder.window or decoder.max_positions)


@contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """Where a file is written before it gets its name; what a stopped export left there is replaced."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        with suppress(OSError):
            partial.unlink()


def _decoder_metadata(plan: LoadPlan, name: str, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> dict[str, Any]:
    config, arch = plan.model.config.decoder, _architecture(plan)
    template = TEMPLATES[plan.model.config.family]
    stop, end = tokenizer.control[template.stop], tokenizer.control.get("<|endoftext|>")
    found = {
        "general.name": model_name(name, arch, vocabulary.tokens),
        "general.type": "model",
        f"{arch}.context_length": _context(plan),
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.block_count": config.num_layers,
        f"{arch}.attention.head_count": config.num_heads,
        f"{arch}.attention.head_count_kv": config.num_kv_heads,
        f"{arch}.attention.layer_norm_{'rms_' if config.gated else ''}epsilon": config.eps,
        f"{arch}.rope.dimension_count": config.rotary_dim,
        f"{arch}.rope.freq_base": config.rope_theta,
        f"{arch}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.splitter,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.bos_token_id": next(iter(tokenizer.prefix), stop if end is None else end),
        "tokenizer.ggml.eos_token_id": stop,
        "tokenizer.ggml.eot_token_id": stop if end is None else end,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.prefix),
        "tokenizer.ggml.add_eos_token": bool(tokenizer.suffix),
        "tokenizer.ggml.add_space_prefix": vocabulary.blank_first,
        "tokenizer.chat_template": chat_template(template),
    }
    if arch == "phi3":
        found["phi3.rope.scaling.original_context_length"] = _context(plan)
    if vocabulary.scores is not None:
        found["tokenizer.ggml.scores"] = vocabulary.scores
    if vocabulary.merges is not None:
        found["tokenizer.ggml.merges"] = vocabulary.merges
    return found


def _tower_metadata(plan: LoadPlan, name: str) -> dict[str, Any]:
    vision = plan.model.config.vision
    return {
        "general.name": name,
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": plan.model.config.decoder.hidden_size,
        "clip.vision.block_count": vision.used_layers,
        "clip.vision.feature_layer": [vision.used_layers],  # else the layer before the last is taken
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.attention.layer_norm_epsilon": vision.eps,
        "clip.vision.image_mean": [0.5] * 3,
        "clip.vision.image_std": [0.5] * 3,
    }
