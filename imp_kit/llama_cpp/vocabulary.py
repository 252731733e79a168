"""A checkpoint's tokenizer as GGUF's metadata hold it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from imp_kit.checkpoints.files import quote
from imp_kit.checkpoints.tokenizer import BYTE
from imp_kit.checkpoints.tokenizer_files import QWEN2_SPLIT, TokenizerFiles
from imp_kit.errors import CheckpointError


class Kind(IntEnum):
    """GGUF's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp has to know to make tokens of a text; the lists have an entry for each row of the embeddings."""

    model: str  # "gpt2": byte-level BPE; "llama": sentencepiece's BPE
    splitter: str  # llama.cpp's name of the way in which a text is cut before BPE
    exact: bool  # whether llama.cpp has that way; if not, it cuts some texts otherwise
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None  # of "llama": the higher, the earlier a token is made
    merges: list[str] | None  # of "gpt2"
    blank_first: bool  # whether a text gets a blank before it


def read_vocabulary(files: TokenizerFiles, size: int) -> Vocabulary:
    """The vocabulary of a checkpoint whose embeddings have `size` rows. Raises CheckpointError for other kinds."""
    data = files.data
    model, words = data["model"], data["model"].get("vocab")
    if model.get("type", "BPE") != "BPE" or not isinstance(words, dict):
        raise CheckpointError(
            f"{files.file} is a {quote(model.get('type'))} tokenizer; only BPE goes into a GGUF file."
        )
    names = {id: word for word, id in words.items()}
    bytewise = bool(model.get("byte_fallback"))
    kinds = {id: Kind.BYTE if bytewise and BYTE.fullmatch(word) else Kind.NORMAL for id, word in names.items()}
    for token in data["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
    if model.get("unk_token") in words:
        kinds[words[model["unk_token"]]] = Kind.UNKNOWN
    taken = set(names.values())
    for id in range(size):
        if id not in names:
            names[id] = next(name for name in _fillers(id) if name not in taken)
            kinds[id] = Kind.UNUSED
    if len(set(names.values())) < size or max(names) >= size:
        raise CheckpointError(
            f"{files.file} gives one text to two tokens, or has more than {size}, which GGUF refuses."
        )
    tokens, types = [names[id] for id in range(size)], [int(kinds[id]) for id in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", ())]
    if bytewise:
        steps = _steps(data.get("normalizer")) + _steps(data.get("pre_tokenizer"))
        blank = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("always", "first") for step in steps)
        return Vocabulary("llama", "default", True, tokens, types, _scores(tokens, merges), None, blank)
    splitter, exact = _splitter(data)
    return Vocabulary("gpt2", splitter, exact, tokens, types, None, merges, False)


def _fillers(id: int) -> Iterator[str]:
    name = f"[PAD{id}]"
    while True:
        yield name
        name = f"[{name}]"


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """sentencepiece makes the token of the highest score first, the library tokenizers that of the earliest merge."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", "", 1), rank)
    return [float(-first.get(token, len(merges))) for token in tokens]


def _steps(part: dict | None) -> list[dict]:
    """A normalizer or pre-tokenizer as a list of its steps."""
    if not part:
        return []
    inner = part.get("pretokenizers", part.get("normalizers"))
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


def _splitter(data: dict) -> tuple[str, bool]:
    normalizers = [step["type"] for step in _steps(data.get("normalizer"))]
    steps = _steps(data.get("pre_tokenizer"))
    plain = [(step["type"], step.get("use_regex", True), step.get("add_prefix_space")) for step in steps]
    if plain == [("ByteLevel", True, False)] and not normalizers:
        return "gpt-2", True
    pattern = steps[0].get("pattern", {}).get("Regex") if steps else None
    if pattern == QWEN2_SPLIT and len(steps) == 2 and normalizers == ["NFC"]:
        return "qwen2", True
    return "gpt-2", False
