"""Text <-> token ids: the checkpoint's own tokenizer, and text that grows while tokens arrive."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from imp_kit.errors import CheckpointError
from imp_kit.prompts import IMAGE, Control
from imp_kit.stored import INCOMPLETE, read_json, shown, text_file

REPLACEMENT = "�"  # what bytes that are no whole UTF-8 character decode to


class TextTokenizer:
    """A checkpoint's tokenizer, for which control tokens inside a text are plain text.

    Reads `tokenizer.json`, or GPT-2's older form, vocab.json and merges.txt. Raises CheckpointError.
    """

    def __init__(self, folder: Path):
        self._file = folder / "tokenizer.json"
        with self._told():
            exists = self._file.exists()
            data = json.loads(text_file(self._file).read_text("utf-8") if exists else _convert(folder).to_str())
            # Phi-2 adds runs of blanks as tokens. Any other added token is a mark, called special or not.
            marks = [token for token in data["added_tokens"] if token["content"].strip()]
            for token in marks:
                token["special"] = True
            self._tokenizer = Tokenizer.from_str(json.dumps(data))
        # "</s>" typed by a user is four letters, never the stop token; and a prompt is neither cut nor filled up.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.control = {token["content"]: token["id"] for token in marks}
        self._control_ids = frozenset(self.control.values())
        for token, id in self.control.items():
            if self._tokenizer.token_to_id(token) != id:
                raise CheckpointError(
                    f"{self._file} gives {shown(token)} the id {id}, but its place in the vocabulary is "
                    f"{self._tokenizer.token_to_id(token)}."
                )
            self.encode(token)
        if not self.encode("a"):
            raise CheckpointError(f"{self._file} has no tokens for letters.")
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

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing in it becomes a control token. Raises CheckpointError where something would."""
        with self._told():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            forged = next(token for token, id in self.control.items() if id in ids)
            raise CheckpointError(
                f"{self._file} makes the control token {shown(forged)} out of plain letters, so that a question could "
                "forge it; the kit refuses such a tokenizer."
            )
        return ids

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of a prompt's pieces, the picture's place left out.

        A control token that the tokenizer does not have is spelled out in letters. One that the tokenizer lets
        swallow the blanks beside it (Phi-3's do) swallows them here, too.
        """
        ids: list[int] = []
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
            ids += self.encode(piece) if piece else []
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, spaces as they are; control tokens are left out."""
        letters = [id for id in ids if id not in self._control_ids]
        with self._told():
            return self._tokenizer.decode(letters, skip_special_tokens=False)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn whatever a broken tokenizer raises into a CheckpointError."""
        try:
            yield
        except (CheckpointError, KeyboardInterrupt, GeneratorExit, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises plain Exception, and a panic in Rust is not even that
            raise CheckpointError(f"{self._file} is no tokenizer that can be read: {shown(str(error))}.") from error


def _convert(folder: Path) -> Tokenizer:
    """GPT-2's byte-level BPE, which Phi-2 uses, from vocab.json, merges.txt and the added tokens of either form."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.exists() and merges.exists()):
        raise CheckpointError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt). {INCOMPLETE}"
        )
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    kind = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if kind not in ("GPT2Tokenizer", "CodeGenTokenizer"):
        raise CheckpointError(
            f"{folder} has a {shown(kind)} in its older form. Save it as tokenizer.json: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    added = {int(id): token["content"] for id, token in settings.get("added_tokens_decoder", {}).items()}
    added_file = folder / "added_tokens.json"
    if added_file.exists():
        added |= {id: token for token, id in read_json(added_file).items()}
    tokenizer = Tokenizer(models.BPE.from_file(str(text_file(vocabulary)), str(text_file(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for id, token in sorted(added.items()):
        blank = token.isspace()
        add = tokenizer.add_tokens if blank else tokenizer.add_special_tokens
        add([AddedToken(token, normalized=blank, special=not blank)])
        if tokenizer.token_to_id(token) != id:
            raise CheckpointError(f"{folder}: the added token {token!r} should have the id {id}, but ids are missing.")
    return tokenizer


class GrowingText:
    """Tokens in, text out: never half a character, never a stop string or the beginning of one.

    Joined, the pieces are the final `text`: without blanks at both ends, cut before the first stop string.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._sent = ""
        self.stopped = False

    def add(self, id: int) -> str:
        """Take one token; return what can be shown now, and set `stopped` if a stop string is complete."""
        self._ids.append(id)
        return self._show(final=False)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        return "" if self.stopped else self._show(final=True)

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return self._sent

    @property
    def ids(self) -> list[int]:
        """The tokens whose text is wholly shown; behind a stop string that is fewer than were added."""
        kept = len(self._ids)
        while self.stopped and kept and len(self._tokenizer.decode(self._ids[:kept]).strip()) > len(self._sent):
            kept -= 1
        return self._ids[:kept]

    def _show(self, final: bool) -> str:
        text = self._tokenizer.decode(self._ids).lstrip()
        cuts = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            text = text[: min(cuts)].rstrip()
        elif final:
            text = text.rstrip()
        else:
            text = text.rstrip(REPLACEMENT)
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)].rstrip()
        piece = text[len(self._sent) :]
        self._sent += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
