"""A checkpoint's tokenizer files, whatever their form -> a tokenizer, and what it wants around a prompt.

Source of the forms: transformers' tokenizer classes GPT2, CodeGen, Qwen2 and Llama with their `save_pretrained`.
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from imp_kit.checkpoints.files import INCOMPLETE, MIXED, quote, read_json, text_file
from imp_kit.errors import CheckpointError

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", *SETTINGS)
# Of each family, for a folder whose tokenizer_config.json names no class.
CLASSES = {"imp": "CodeGenTokenizer", "imp_qwen2": "Qwen2Tokenizer", "imp_phi3": "LlamaTokenizer"}
# How Qwen2's byte-level BPE splits a text beforehand. Source: transformers 4.37.2, tokenization_qwen2.py.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MOST_TOKENS = 10_000_000  # far more than any tokenizer has
MARKS = 16  # words of a vocabulary that no merge makes, such as "<|endoftext|>"; more are missing merges
BLANK = "▁"  # how LLaMA's pieces write a blank
# A text with everything in which a converted tokenizer.model could differ from its original.
TRIAL = " A  bus,\n\tthe 男 🚌 of 2024 ▁ café\u3000é "


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say."""

    file: Path  # the one to name in an error
    data: dict  # tokenizer.json's object, with the added tokens of all the files
    tokenizer: Tokenizer  # of that object, for the text that begins a prompt
    within: Tokenizer  # for every other text: a Metaspace for the "first" text puts no blank before it
    prefix: tuple[int, ...]  # ids before each prompt, such as that of "<s>", and after it
    suffix: tuple[int, ...]


def tokenizer_names(names: set[str]) -> set[str]:
    """Of the names of a checkpoint's files, those from which its tokenizer is made."""
    # Beside tokenizer.json the older forms are not read.
    return names & {"tokenizer.json", *SETTINGS} if "tokenizer.json" in names else names & set(TOKENIZER_FILES)


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer. Raises CheckpointError."""
    settings, specials = (_optional(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    named = settings.get("tokenizer_class")
    kind = str(named or CLASSES.get(str(_optional(folder / "config.json").get("model_type")), "GPT2Tokenizer"))
    kind = kind.removesuffix("Fast")
    file = folder / "tokenizer.json"
    if os.path.lexists(file):
        data = read_json(file)
        if not isinstance(data.get("model"), dict) or not _are_tokens(data.get("added_tokens")):
            raise CheckpointError(f"{file} is no tokenizer: it lacks its model or its added tokens. Download it again.")
        _merges_as_texts(data)
    else:
        file, data = _convert(folder, kind, settings)
    _add_tokens(data, file, folder, settings)
    for token in data["added_tokens"]:
        # Phi-2 adds runs of blanks as tokens. Any other added token is a mark, called special or not.
        token["special"] = not token["content"].isspace()
    tokenizer = within = Tokenizer.from_str(json.dumps(data))
    later = _within(data)
    if later is not data:
        within = Tokenizer.from_str(json.dumps(later))
    kind = kind if named or file.name == "tokenizer.model" else ""
    prefix, suffix = _around(tokenizer, kind, settings, specials, folder / "tokenizer_config.json")
    return TokenizerFiles(file, data, tokenizer, within, prefix, suffix)


def _are_tokens(value: object) -> bool:
    fields = {"id": int, "content": str}
    return isinstance(value, list) and all(
        isinstance(token, dict) and all(type(token.get(name)) is kind for name, kind in fields.items())
        for token in value
    )


def _optional(file: Path) -> dict:
    return read_json(file) if os.path.lexists(file) else {}


def _merges_as_texts(data: dict) -> None:
    """tokenizers since 0.20 writes a merge as a pair, which older versions cannot read."""
    merges = data["model"].get("merges")
    if merges and all(isinstance(pair, list) and len(pair) == 2 for pair in merges):
        pairs = [tuple(map(str, pair)) for pair in merges]
        if not any(" " in part for pair in pairs for part in pair):
            data["model"]["merges"] = [" ".join(pair) for pair in pairs]


def _convert(folder: Path, kind: str, settings: Mapping) -> tuple[Path, dict]:
    """The older forms: vocab.json and merges.txt, or LLaMA's tokenizer.model."""
    llama = kind.endswith("LlamaTokenizer")
    if not llama and not kind.endswith(("Qwen2Tokenizer", "GPT2Tokenizer", "CodeGenTokenizer")):
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and tokenizer_config.json names a {quote(kind)}, whose older form is not "
            "known. Save it as tokenizer.json: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    files = [folder / name for name in (("tokenizer.model",) if llama else ("vocab.json", "merges.txt"))]
    missing = [file.name for file in files if not os.path.lexists(file)]
    if missing:
        raise CheckpointError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor {' and '.join(missing)}, of which a "
            f"{quote(kind)} is made (as tokenizer_config.json or the family says). {INCOMPLETE}"
        )
    tokenizer = _sentencepiece(files[0]) if llama else _byte_level(files[0], files[1], kind, settings)
    return files[0], json.loads(tokenizer.to_str())


def _byte_level(vocabulary: Path, merges: Path, kind: str, settings: Mapping) -> Tokenizer:
    """GPT-2's byte-level BPE, or Qwen2's, which normalizes a text and splits it otherwise beforehand."""
    words = read_json(vocabulary)
    if not all(type(id) is int for id in words.values()) or sorted(words.values()) != list(range(len(words))):
        raise CheckpointError(f"{vocabulary} does not number its {len(words)} words from 0 on. Download it again.")
    text = text_file(merges).read_text("utf-8").rstrip("\n")
    lines = [line for line in text.split("\n") if text and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    for line, pair in zip(lines, pairs, strict=True):
        if len(pair) != 2:
            raise CheckpointError(f"{merges} holds {quote(line)}, which is no pair of parts. Download it again.")
    try:
        model = models.BPE(words, pairs)
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(
            f"{vocabulary} and {merges.name} make no tokenizer ({quote(str(error))}). {MIXED}"
        ) from error
    made = {"".join(pair) for pair in pairs}
    unmade = sum(len(word) > 1 and word not in made for word in words)
    if unmade > MARKS:
        raise CheckpointError(
            f"{merges} makes {len(words) - unmade} of the {len(words)} words in {vocabulary.name}. {MIXED}"
        )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    if kind.endswith("Qwen2Tokenizer"):
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space") is True)
    return tokenizer


def _sentencepiece(file: Path) -> Tokenizer:
    """LLaMA's tokenizer.model, a BPE of sentencepiece (arXiv 1808.06226), as the library `tokenizers` has it.

    A blank is put before each text between control tokens, as in Phi-3's tokenizer.json and by transformers 4.37.2's
    fast class; its slow class and transformers 5 heed "legacy" in tokenizer_config.json instead.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{file} is a tokenizer that only the package sentencepiece reads: pip install sentencepiece"
        ) from None
    try:
        pieces = SentencePieceProcessor(model_file=str(text_file(file)))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file} is no tokenizer that can be read ({error}). Download it again.") from error
    size = pieces.get_piece_size()
    vocabulary = {pieces.id_to_piece(id): id for id in range(size)}
    special = [id for id in range(size) if pieces.is_control(id) or pieces.is_unknown(id)]
    texts = [TRIAL, *(piece.replace(BLANK, " ") for id, piece in enumerate(vocabulary) if id not in special)]
    plain = {
        vocabulary[piece]: piece
        for piece in vocabulary
        if vocabulary[piece] not in special and not pieces.is_byte(vocabulary[piece])
    }
    # A piece of higher score is made first; each of its halves must be a piece, too.
    order = sorted(plain, key=lambda id: -pieces.get_score(id))
    merges = [
        pair
        for id in order
        for pair in sorted(_halves(plain[id], vocabulary), key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    ]
    unknown = pieces.id_to_piece(pieces.unk_id())
    bytes_too = any(pieces.is_byte(id) for id in range(size))
    bpe = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    ours = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    if ours != pieces.encode(texts):
        raise CheckpointError(
            f"{file} is another kind of tokenizer than LLaMA's. Save it as tokenizer.json: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    tokenizer.add_special_tokens([pieces.id_to_piece(id) for id in special])
    return tokenizer


def _within(data: dict) -> dict:
    """The same tokenizer for a text that does not begin the prompt."""
    changed = copy.deepcopy(data.get("pre_tokenizer"))
    steps = [changed or {}]
    for step in steps:
        steps += step.get("pretokenizers", ())
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return data if changed == data.get("pre_tokenizer") else {**data, "pre_tokenizer": changed}


def _halves(piece: str, vocabulary: Mapping) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary:
            yield piece[:cut], piece[cut:]


def _add_tokens(data: dict, file: Path, folder: Path, settings: Mapping) -> None:
    """Put the added tokens that other files name beside those of tokenizer.json; each has one id in all of them."""
    known = {token["content"]: token["id"] for token in data["added_tokens"]}
    plain = data["model"].get("vocab")
    plain = plain if isinstance(plain, dict) else {}
    others: dict[str, dict] = {}
    for source, content, id, flags in _named_elsewhere(folder, settings):
        if type(id) is not int or not 0 <= id < MOST_TOKENS:
            raise CheckpointError(f"{folder / source}: {quote(content)} has the id {quote(id)}. Download it again.")
        here = others.get(content, {}).get("id", known.get(content, plain.get(content)))
        if here not in (None, id):
            raise CheckpointError(
                f"{folder / source} gives {quote(content)} the id {quote(id)}, but {file.name} says {here}. {MIXED}"
            )
        if content not in known:
            default = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
            default["normalized"] = content.isspace()
            given = {name: value for name, value in flags.items() if name in default and type(value) is bool}
            others.setdefault(content, {"id": id, "content": content, **default, **given})
    data["added_tokens"] = sorted([*data["added_tokens"], *others.values()], key=lambda token: token["id"])


def _named_elsewhere(folder: Path, settings: Mapping) -> Iterator[tuple[str, str, int, Mapping]]:
    """File, content, id and flags of each added token that tokenizer_config.json or added_tokens.json names."""
    decoder = settings.get("added_tokens_decoder") or {}
    whole = isinstance(decoder, dict) and all(
        id.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]
        for id, token in decoder.items()
    )
    if not whole:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is {quote(decoder)}, not ids and tokens."
        )
    for id, token in decoder.items():
        yield "tokenizer_config.json", token["content"], int(id), token
    for content, id in _optional(folder / "added_tokens.json").items():
        yield "added_tokens.json", content, id, {}


def _contents(value: Any) -> list[str]:
    """The texts of special tokens in any of the forms that transformers writes: a text, an object, a list of them."""
    if isinstance(value, list):
        return [content for each in value for content in _contents(each)]
    content = value.get("content") if isinstance(value, dict) else value
    return [content] if isinstance(content, str) else []


def _around(
    tokenizer: Tokenizer, kind: str, settings: Mapping, specials: Mapping, file: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a prompt: as the settings (`file`) ask, else LLaMA's class, else the post-processor."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    start = next((index for index in range(len(whole)) if whole[index : index + len(bare)] == bare), 0)
    found = (tuple(whole[:start]), tuple(whole[start + len(bare) :]))
    llama = kind.endswith("LlamaTokenizer")
    ids: list[tuple[int, ...]] = []
    for name, own, default in (("bos", found[0], "<s>"), ("eos", found[1], "</s>")):
        asked = settings.get(f"add_{name}_token")
        if asked not in (True, False, None):
            raise CheckpointError(f"{file}: add_{name}_token is {quote(asked)}, not true or false. Correct it.")
        if asked is None and llama:
            asked = name == "bos"
        if asked is None or kind.endswith("Qwen2Tokenizer"):  # whose class knows no such setting
            ids.append(own)
            continue
        tokens = _contents(settings.get(f"{name}_token")) or _contents(specials.get(f"{name}_token"))
        tokens = tokens or [default] * llama
        id = tokenizer.token_to_id(tokens[0]) if tokens else None
        if asked and id is None:
            raise CheckpointError(
                f"{file} asks for a {name}_token around each prompt, but "
                f"{quote(tokens[0]) + ' is no token' if tokens else 'names none'}. Download it again."
            )
        ids.append((id,) if asked and id is not None else ())
    return ids[0], ids[1]
