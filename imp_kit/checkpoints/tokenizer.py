"""Text <-> token ids: the checkpoint's own tokenizer."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from imp_kit.checkpoints.files import MIXED, quote
from imp_kit.checkpoints.tokenizer_files import BLANK, read_tokenizer
from imp_kit.errors import CheckpointError
from imp_kit.prompts import IMAGE, Control

REPLACEMENT = "\ufffd"  # what bytes that are no whole UTF-8 character decode to
HELD = "\U0010fffe"  # no character: stands in for one while others are replaced
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte-fallback tokenizer's token for one byte


class TextTokenizer:
    """A checkpoint's tokenizer, for which control tokens inside a text are plain text.

    `prefix` and `suffix` are the ids that stand before and after each prompt, such as that of "<s>".
    Reads what `read_tokenizer` reads. Raises CheckpointError.
    """

    def __init__(self, folder: Path):
        self.file = folder / "tokenizer.json" if (folder / "tokenizer.json").exists() else folder
        with self._tokenizer_errors():
            files = read_tokenizer(folder)
            self.file, self.prefix, self.suffix = files.file, files.prefix, files.suffix
            self._tokenizer, self._within = files.tokenizer, files.within
            for tokenizer in (self._tokenizer, self._within):
                # "</s>" typed by a user is four letters, never the stop token; and a prompt is neither cut nor filled.
                tokenizer.encode_special_tokens = True
                tokenizer.no_truncation()
                tokenizer.no_padding()
        self._byte_fallback = bool(files.data["model"].get("byte_fallback"))
        marks = [token for token in files.data["added_tokens"] if token["special"]]
        self.control = {token["content"]: token["id"] for token in marks}
        self._control_ids = frozenset(self.control.values())
        for token in files.data["added_tokens"]:
            content, id = token["content"], token["id"]
            if self._tokenizer.token_to_id(content) != id:
                raise CheckpointError(
                    f"{self.file}: the added token {quote(content)} should have the id {id}, but the next free one is "
                    f"{self._tokenizer.token_to_id(content)}: a token before it is missing. {MIXED}"
                )
        for token in self.control:
            self.encode(token)
        if not self.encode("a"):
            raise CheckpointError(f"{self.file} has no tokens for letters.")
        self._strip_left = {token["content"] for token in marks if token["lstrip"]}
        self._strip_right = {token["content"] for token in marks if token["rstrip"]}

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer as the library `tokenizers` has it."""
        return self._tokenizer

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Token ids of a text that `begins` a prompt or stands within one; nothing in it becomes a control token.

        Raises CheckpointError where something would.
        """
        with self._tokenizer_errors():
            ids = (self._tokenizer if begins else self._within).encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            forged = next(token for token, id in self.control.items() if id in ids)
            raise CheckpointError(
                f"{self.file} makes the control token {quote(forged)} out of plain letters, so that a question could "
                "forge it; the kit refuses such a tokenizer."
            )
        return ids

    def encode_pieces(self, pieces: Sequence[str], *, begins: bool = False) -> list[int]:
        """Token ids of a prompt's pieces, without the image; the `prefix` before those that `begins` it.

        A control token that the tokenizer does not have is spelled out in letters. One that the tokenizer lets
        remove the blanks beside it (Phi-3's do) removes them here, too.
        """
        ids = list(self.prefix) if begins else []
        for index, piece in enumerate(pieces):
            if piece == IMAGE:
                continue
            if isinstance(piece, Control) and piece in self.control:
                ids.append(self.control[piece])
                continue
            if index and pieces[index - 1] in self._strip_right:
                piece = piece.lstrip()
            if index + 1 < len(pieces) and pieces[index + 1] in self._strip_left:
                piece = piece.rstrip()
            ids += self.encode(piece, begins=begins and not index) if piece else []
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, spaces as they are; control tokens are left out."""
        letters = [id for id in ids if id not in self._control_ids]
        with self._tokenizer_errors():
            if not self._byte_fallback:
                return self._tokenizer.decode(letters, skip_special_tokens=False)
            # The library's decoder gives a mark for each byte of a run that is no whole character.
            tokens = filter(None, map(self._tokenizer.id_to_token, letters))
            runs = groupby(tokens, key=lambda token: bool(BYTE.fullmatch(token)))
            # Letter by letter: what the bytes spell may look like a byte's token. A BLANK that they spell is no blank.
            spelled = [
                text for are_bytes, run in runs for text in (_letters(run).replace(BLANK, HELD) if are_bytes else run)
            ]
            return self._tokenizer.decoder.decode(spelled).replace(HELD, BLANK)

    @contextmanager
    def _tokenizer_errors(self) -> Iterator[None]:
        """Turn whatever a broken tokenizer raises into a CheckpointError."""
        try:
            yield
        except (CheckpointError, KeyboardInterrupt, GeneratorExit, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises plain Exception, and a panic in Rust is not even that
            raise CheckpointError(
                f"{self.file} is no tokenizer that can be read: {quote(str(error))}. Download it again."
            ) from error


def _letters(tokens: Iterator[str]) -> str:
    return bytes(int(token[3:5], 16) for token in tokens).decode("utf-8", "replace")
