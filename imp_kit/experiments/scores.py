"""What an answer is worth, from its text alone: reading, language, garbling. Pure functions, no model."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from imp_kit.system.extras import require

COPIED = 0.9  # likeness from which a caption counts as copied
LEAST_RUN = 3  # characters of a run that counts as something read
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|「([^」]+)」')
RUN = re.compile(rf"[A-Za-z0-9]{{{LEAST_RUN},}}")
DENIALS = re.compile(r"\b(no|not|none|nothing|without|cannot|unable|blank|empty|unreadable|illegible|\w+n't)\b", re.I)
CLAIMS = re.compile(r"\b(reads?|says?|written|spells?|(?:text|code|word|letters?|characters?) (?:is|are))\b", re.I)
NGRAM = 4  # characters, for repetition
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no UTF-8


def normalise(text: str) -> str:
    """NFKC (Unicode Standard Annex 15), upper case, letters and digits only."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).upper() if c.isalnum())


def extract(reply: str) -> str:
    """What a reply says is written: its first quotation, else its longest run of letters and digits, else all of it."""
    if quoted := QUOTED.search(reply):
        return next(part for part in quoted.groups() if part)
    return max(RUN.findall(reply), key=len, default=reply)


def is_exact(reply: str, truth: str, *, strict: bool = False) -> bool:
    """Whether a reply gives the truth and nothing else: of the extraction, or of the whole reply if `strict`."""
    return normalise(reply if strict else extract(reply)) == normalise(truth)


def contains(reply: str, truth: str) -> bool:
    """Whether the truth stands anywhere in the reply. Lenient: give `chance_level` beside it."""
    return bool(normalise(truth)) and normalise(truth) in normalise(reply)


def _levenshtein():
    require("measure", "rapidfuzz", what="A score of a reading")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein


def edits(read: str, truth: str) -> int:
    """Fewest substitutions, deletions and insertions from `truth` to `read`, both normalised (Levenshtein 1966)."""
    return _levenshtein().distance(normalise(truth), normalise(read))


def edit_share(read: str, truth: str) -> float:
    """Edits over the longer one's characters, 0 to 1; 0 for two empty texts."""
    longer = max(len(normalise(read)), len(normalise(truth)))
    return edits(read, truth) / longer if longer else 0.0


def position_accuracy(read: str, truth: str) -> float:
    """Share of the truth's characters that stand in the reading at the same position."""
    read, truth = normalise(read), normalise(truth)
    return sum(a == b for a, b in zip(read, truth, strict=False)) / len(truth)


def confusion(pairs: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often each true character was read as which, over (read, truth) pairs, after the fewest edits.

    Keys are (true, read); "" stands for nothing, so ("A", "") is an A that is missing and ("", "A") one invented.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for read, truth in pairs:
        read, truth = normalise(read), normalise(truth)
        for step in _levenshtein().opcodes(truth, read):
            was, became = truth[step.src_start : step.src_end], read[step.dest_start : step.dest_end]
            longer = max(len(was), len(became))
            counts.update(zip(was or [""] * longer, became or [""] * longer, strict=True))
    return counts


def is_copied(caption: str, reply: str) -> bool:
    """Whether the caption stands in the reply, but for a tenth of its letters.

    rapidfuzz's partial ratio looks for the shorter text in the longer, so a reply much shorter than the caption, which
    would be found in it, is none.
    """
    require("measure", "rapidfuzz", what="A score of a reading")
    from rapidfuzz.fuzz import partial_ratio

    caption, reply = normalise(caption), normalise(reply)
    return len(reply) >= COPIED * len(caption) > 0 and partial_ratio(caption, reply) >= 100 * COPIED


def outcome(reply: str, code: str, caption: str) -> str:
    """Which of the two lines of a picture a reply gives: "code", "both", "caption only" or "neither"."""
    has_code, has_caption = contains(reply, code), is_copied(caption, reply)
    return {
        (True, False): "code",
        (True, True): "both",
        (False, True): "caption only",
        (False, False): "neither",
    }[has_code, has_caption]


def is_invented(reply: str) -> bool:
    """Whether a reply about a picture without text gives one: it quotes some, or claims some and denies none.

    A reply that is a single word or code, as one who was asked for nothing else would answer, gives one, too.
    """
    plain = reply.replace("’", "'")
    if QUOTED.search(plain):
        return True
    if not normalise(plain) or DENIALS.search(plain):
        return False
    return bool(CLAIMS.search(plain)) or len(plain.split()) == 1


def chance_level(replies: Sequence[str], truths: Sequence[str], metric=contains) -> float:
    """What a metric gives for replies to other items: its mean over each reply with every other item's truth."""
    pairs = [metric(reply, truth) for i, reply in enumerate(replies) for j, truth in enumerate(truths) if i != j]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _is_kana(character: str) -> bool:
    return "ぁ" <= character <= "ゖ" or "ァ" <= character <= "ヺ" or character == "ー"


def _is_japanese(character: str) -> bool:
    return _is_kana(character) or "一" <= character <= "鿿" or character in "々〆"


def japanese_share(text: str) -> float:
    """Share of a text's letters that are kana or kanji; 0 without letters. Chinese also scores 1."""
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalpha() or c == "ー"]
    return sum(map(_is_japanese, letters)) / len(letters) if letters else 0.0


def is_japanese(text: str, accepted: Iterable[str] = ()) -> bool:
    """Whether a reply is in Japanese: half of its letters or more are, and one is kana; or it is an `accepted` answer.

    The kana tell Japanese from Chinese; an answer that is right without any, such as 三, is named beforehand.
    """
    plain = normalise(text)
    if any(plain == normalise(answer) for answer in accepted):
        return True
    return japanese_share(text) >= 0.5 and any(map(_is_kana, unicodedata.normalize("NFKC", text)))


def replacements(text: str) -> tuple[int, int]:
    """U+FFFD in a reply: those at its end, where it was cut within a character, and those inside."""
    inside = text.rstrip().rstrip(REPLACEMENT)
    return text.count(REPLACEMENT) - inside.count(REPLACEMENT), inside.count(REPLACEMENT)


def repetition(text: str) -> float:
    """1 - distinct / all of the runs of four characters: 0 where nothing comes twice, near 1 in a loop."""
    runs = [text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _chrf():
    require("measure", "sacrebleu", what="chrF")
    from sacrebleu.metrics import CHRF

    return CHRF()


def chrf(replies: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus chrF of replies against two references or more each, 0 to 100, and sacrebleu's signature of how.

    Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015.
    """
    metric = _chrf()
    most = max(map(len, references))
    # sacrebleu wants a stream a reference; one that lacks a second repeats its first, which changes no maximum.
    streams = [[each[min(i, len(each) - 1)] for each in references] for i in range(most)]
    return metric.corpus_score(list(replies), streams).score, str(metric.get_signature())


def chrf_each(replies: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """chrF of each reply on its own, 0 to 100, against its nearest reference: what a mean and its interval need."""
    metric = _chrf()
    return [metric.sentence_score(reply, list(each)).score for reply, each in zip(replies, references, strict=True)]
