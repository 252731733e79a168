"""What a reply says, by its words: which of some names, how many, yes or no. In English, Japanese or a mixture.

Japanese has no blanks between words, and a short word stands inside many others: 白 (white) in 面白い (interesting), 円
(circle) in 百円 (a hundred yen), 一 (one) in 一緒 (together). So a morphological analyser, Sudachi, cuts replies into
words, and these are compared, not substrings. It also gives one form for all ways to write a word: ねこ, ネコ and 猫.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from imp_kit.system.extras import require

Names = Mapping[str, Mapping[str, Sequence[str]]]  # each name's terms, lists "en" and "ja"

JAPANESE = re.compile(r"[ぁ-ゖァ-ヺ一-鿿]")
# What may follow a noun without making another thing of it: a color, a shape, a part of the picture, several of it.
SAME_THING = {
    "色", "系", "ぽい", "形", "型", "側", "部", "部分", "隅", "端", "角", "方", "方向", "方面", "付近", "辺り",
    "寄り", "達", "等", "さん", "ちゃん", "類",
}  # fmt: skip
NO_NUMBER_OF_THINGS = {"目", "番", "番目", "位", "階"}  # the first, the second floor
KANJI = {"〇": 0, "一": 1, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10}
PEOPLE = {"一人": 1, "二人": 2}
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# A number, but not the "one" of "no one" or "this one".
ENGLISH_NUMBER = re.compile(
    rf"(?<![a-z0-9.])(?:(?<!no )(?<!the )(?<!this )(?<!that )({'|'.join(ENGLISH)})|(\d+))(?![a-z0-9])"
)
DENIED_WITHIN = 60  # characters before a term
PIECE = 10_000  # characters that the analyser gets at once; it takes 49,149 bytes at most
DENIED = re.compile(r"(?:\b(?:not|no|without|nor)|n't)(?: (?:an?|the|at|in|on|to))* $")
PART = r"(?: (?:corner|side|part|edge|area|half|section))?"


@dataclass(frozen=True)
class Word:
    """A word of a reply: as it is written, its normal form, and its part of speech by the names of UniDic."""

    text: str
    form: str
    speech: str

    @property
    def is_number(self) -> bool:
        return self.speech == "名詞.数詞"

    @property
    def is_noun(self) -> bool:
        return self.speech.startswith(("名詞", "接尾辞", "形状詞")) and not self.is_number

    @property
    def counts(self) -> bool:
        """Whether it may be the counter of the number before it, as 匹 or つ."""
        return self.form == "つ" or "助数詞" in self.speech or self.speech.startswith("接尾辞")

    @property
    def denies(self) -> bool:
        """Whether it is ない or the ん of ません."""
        return self.form in ("無い", "ない", "ず") and self.speech.startswith(("形容詞", "助動詞"))

    @property
    def is_grammar(self) -> bool:
        """Whether it says nothing about the world alone: a particle, an ending, to be or to do."""
        return self.speech.startswith(("助詞", "助動詞")) or self.form in ("居る", "有る", "為る", "無い")


def need_analyser() -> None:
    """Raise SettingError where the analyser or its dictionary is missing."""
    require("measure", "sudachipy", "sudachidict-small", what="A score of a Japanese answer")


def plain(reply: str) -> str:
    """The reply in one notation: NFKC (Unicode Standard Annex 15), lower case, one kind of apostrophe, no hyphens.

    Half a character (a lone surrogate), which UTF-8 cannot hold, becomes a question mark.
    """
    whole = reply.encode(errors="replace").decode()
    return unicodedata.normalize("NFKC", whole).lower().replace("’", "'").replace("-", " ").strip()


@lru_cache(maxsize=1)
def _analyser():
    need_analyser()
    from sudachipy import Dictionary, SplitMode

    return Dictionary(dict="small").tokenizer(SplitMode.C)


@lru_cache(maxsize=10_000)
def words(text: str) -> tuple[Word, ...]:
    """The Japanese words of a text in its plain notation, without blanks; none where it has no Japanese letter."""
    if not JAPANESE.search(text):
        return ()
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    return tuple(_word(found) for piece in pieces for found in _analyser().tokenize(piece) if found.surface().strip())


def _word(found) -> Word:
    speech = ".".join(part for part in found.part_of_speech()[:3] if part != "*")
    return Word(found.surface(), found.normalized_form(), speech)


def mentioned(reply: str, names: Names, beside: Names | None = None, denied: bool = False) -> set[str]:
    """Which names a reply gives by one of their terms, and does not deny: "not red, but blue" names blue.

    Longer terms are looked for first, so that "top left" names no "left". Where names are of places, `beside` are the
    things next to which something may be: "left of the tree" is no place in the picture. `denied` adds what is denied.
    """
    text = plain(reply)
    found = set()
    for language, in_language in (("en", _in_english), ("ja", _in_japanese)):
        terms = [(term, name) for name, forms in names.items() for term in forms[language]]
        things = [term for forms in (beside or {}).values() for term in forms[language]]
        found |= in_language(text, sorted(terms, key=lambda pair: -len(pair[0])), things, denied)
    return found


def _in_english(text: str, terms: list[tuple[str, str]], things: Sequence[str], denied: bool) -> set[str]:
    found = set()
    beside = re.compile(rf"{PART} of (?:the |an? )?(?:{'|'.join(map(re.escape, things)) or '(?!)'})\b")
    for term, name in terms:
        for match in re.finditer(rf"(?<![a-z0-9]){re.escape(term)}(?:s|es)?(?![a-z0-9])", text):
            denial = DENIED.search(text, max(0, match.start() - DENIED_WITHIN), match.start())
            if (denied or not denial) and not beside.match(text, match.end()):
                found.add(name)
            text = text[: match.start()] + "#" * len(match[0]) + text[match.end() :]
    return found


def _in_japanese(text: str, terms: list[tuple[str, str]], things: Sequence[str], denied: bool) -> set[str]:
    reply = words(text)
    found, free = set(), [True] * len(reply)
    known = {term for term, _ in terms}
    for term, name in terms:
        for start, end in _places_of(plain(term), reply):
            if not all(free[start:end]):
                continue
            free[start:end] = [False] * (end - start)
            beside = start > 1 and reply[start - 1].text == "の" and reply[start - 2].form in things
            if _is_meant(reply, start, end, known) and not beside and (denied or not _is_denied(reply, end)):
                found.add(name)
    return found


def _places_of(term: str, reply: tuple[Word, ...]) -> Iterator[tuple[int, int]]:
    """Where whole words of the reply are the term, as it is written or in its normal form."""
    forms = tuple(word.form for word in words(term)) or (term,)
    for start, first in enumerate(reply):
        if first.form != forms[0] and not term.startswith(first.text):
            continue
        # A part with more words than this is longer than the term.
        for end in range(start + 1, min(len(reply), start + max(len(term), len(forms))) + 1):
            part = reply[start:end]
            if "".join(word.text for word in part) == term or tuple(word.form for word in part) == forms:
                yield start, end


def _is_meant(reply: tuple[Word, ...], start: int, end: int, known: set[str]) -> bool:
    """Whether words stand for themselves: not in a compound, カップケーキ or 入学式, nor as a counter, 百円."""
    if start and (reply[start - 1].is_number or reply[start].speech.startswith("接尾辞")):
        return False
    following = reply[end] if end < len(reply) else None
    # An English word makes no compound with a Japanese one: ネコ is white.
    compound = following is not None and following.is_noun and reply[end - 1].is_noun and not following.text.isascii()
    return not compound or following.form in SAME_THING | known


def _is_denied(reply: Sequence[Word], end: int) -> bool:
    """Whether a negation follows, from the word number `end` on, before the next content: 赤ではなく青です denies 赤.

    しか with it means "only".
    """
    for at in range(end, len(reply)):
        word = reply[at]
        if word.denies:
            return True
        if word.form == "しか" or not (word.is_grammar or word.form in SAME_THING):
            return False
    return False


def numbers(reply: str) -> set[str]:
    """The numbers that a reply gives and does not deny, as digits, with a counter or alone; not ordinal ones."""
    text = plain(reply)
    cut = words(text)
    # With Japanese around them, digits are words of it: 1匹目 is "the first".
    found = {
        str(ENGLISH.index(word)) if word else _digits(digits)
        for word, digits in ENGLISH_NUMBER.findall(text)
        if word or not cut
    }
    for at, word in enumerate(cut):
        value = _value(word)
        counter = [next_ for next_ in cut[at + 1 : at + 2] if word.is_number and next_.counts]
        after = at + 1 + len(counter)
        other = any(next_.form in NO_NUMBER_OF_THINGS for next_ in (*counter, *cut[after : after + 1]))
        if value is not None and not other and not _is_denied(cut, after):
            found.add(value)
    return found


def _value(word: Word) -> str | None:
    if word.is_number and word.form.isdecimal():
        return _digits(word.form)
    value = (KANJI if word.is_number else PEOPLE).get(word.form)
    return None if value is None else str(value)


def _digits(number: str) -> str:
    """A number without leading zeros; not by `int`, which takes 4,300 digits at most."""
    return number.lstrip("0") or "0"


# Words that say nothing about what is asked.
EMPTY = {
    "a", "an", "the", "is", "are", "am", "was", "be", "do", "does", "did", "can", "could", "has", "have", "there",
    "here", "it", "this", "that", "they", "he", "she", "you", "i", "we", "one", "doubt", "of", "in", "on", "at",
    "to", "by", "with", "for", "and", "or", "so", "also", "see", "seen", "shows", "show", "any", "some", "no",
    "not", "none", "nothing", "nobody", "picture", "image", "photo", "photograph", "isn", "aren", "don", "doesn",
    "t", "s", "re",
}  # fmt: skip
EMPTY_JAPANESE = {
    "写真", "画像", "絵", "中", "何", "誰", "物", "事", "写る", "映る", "見える", "見る", "存在", "居る", "有る",
    "無い", "為る", "成る", "言う", "思う", "御座る", "通り", "沢山", "間違い",
}  # fmt: skip
UNKNOWN = re.compile(r"(?:\bnot|n't|\bcannot) (?:know|sure|tell|say|clear|be determined)|\bunclear\b")
NOT = re.compile(r"\b(?:no|not|none|nothing|nobody|cannot|never)\b|n't\b")
STATES = re.compile(r"\b(?:is|are|am|has|have|does|do|can|see|shows?)\b|'(?:s|re)\b|n't\b")
EXISTS = re.compile(r"\b(?:there|see|has|have|shows?)\b")
EXISTS_JAPANESE = {"居る", "有る", "無い", "写る", "映る", "見える"}
KNOWS = {"分かる", "知る"}
FIRST = {"はい": "yes", "ええ": "yes", "うん": "yes", "勿論": "yes"} | dict.fromkeys(
    ("いいえ", "いえ", "否", "ううん"), "no"
)
QUESTION = re.compile(r"[^.!?。\n]*\?")  # in the notation of `plain`
BOTH = re.compile(r"\W*(yes|no)\W+(?:or\W+)?(yes|no)(?![a-z])")
CLAUSES = re.compile(r"[,.;:!?。、]|\bbut\b|(?<=ます|せん|です|ない|いる|ある)(?:が|けれども|けれど|けど)")


def yes_or_no(reply: str, question: str, names: Names) -> set[str]:
    """{"yes"} or {"no"}: by the first word, or else by the first clause that speaks of what was asked; or neither, {}.

    A question says neither, as where a reply repeats what was asked, and so does a reply that begins with both.
    `names` are things by their words in both languages; they say whether a clause in the other language than the
    question's speaks of another thing.
    """
    text = QUESTION.sub("", plain(reply))
    if _begins_with_both(text):
        return set()
    if said := _first_word(text):
        return {said}
    for clause in CLAUSES.split(text):
        if clause.strip() and (said := _says(clause.strip(), plain(question), names)):
            return {said} & {"yes", "no"}
    return set()


def _begins_with_both(text: str) -> bool:
    found = BOTH.match(text)
    cut = [word for word in words(text) if not word.speech.startswith("補助記号")]
    first = [FIRST.get(word.form) for word in cut[:2]]
    return bool(found and found[1] != found[2]) or set(first) == {"yes", "no"}


def _first_word(text: str) -> str | None:
    if found := re.match(r"\W*(yes|no)(?![a-z])", text):
        return found[1]
    cut = [word for word in words(text) if not word.speech.startswith("補助記号")]
    if not cut or (len(cut) > 1 and cut[1].speech.startswith("助詞.接続助詞")):  # はいている is "wears"
        return None
    return FIRST.get(cut[0].form)


def _says(clause: str, question: str, names: Names) -> str | None:
    """What a clause says: "yes", "no", "unknown", or None where it is about something else or says nothing."""
    cut = words(clause)
    if cut and cut[-1].form == "か" and cut[-1].speech == "助詞.終助詞":
        return None  # a question
    forms = {word.form for word in cut}
    denied = bool(NOT.search(clause)) or any(word.denies for word in cut)
    if UNKNOWN.search(clause) or (denied and forms & KNOWS):
        return "unknown"
    about = _content(clause)
    if about == ["違う"]:
        return "no"
    states = STATES.search(clause) or any(
        word.speech.startswith(("動詞", "形容詞")) or word.form in ("です", "だ") for word in cut
    )
    if not states or (about and not _is_about(clause, about, question, names)):
        return None
    return "no" if denied and not forms & {"しか", "間違い"} else "yes"


def _is_about(clause: str, about: list[str], question: str, names: Names) -> bool:
    """Whether a clause repeats what was asked: that something is there, or else what is said of it."""
    if bool(JAPANESE.search(clause)) != bool(JAPANESE.search(question)):
        things = mentioned(clause, names, denied=True)
        return not things or bool(things & mentioned(question, names, denied=True))
    asked = _content(question)
    there = EXISTS.search(clause) or _exists(words(clause))
    return any(_alike(one, other) for one in about for other in (asked if there else asked[-1:]))


def _content(text: str) -> list[str]:
    """The words of a text that say something: English ones as they are, Japanese ones in their normal form."""
    return [word for word in re.findall(r"[a-z]+", text) if word not in EMPTY] + [
        word.form
        for word in words(text)
        if word.speech.startswith(("名詞.普", "名詞.固", "動詞", "形容詞", "形状詞"))
        and JAPANESE.search(word.text)
        and word.form not in EMPTY_JAPANESE
    ]


def _exists(clause: Sequence[Word]) -> bool:
    """Whether something is there or not: いる alone, but not that of 開いている, nor the ある of 外ではありません."""
    for at, word in enumerate(clause):
        before = "".join(each.text for each in clause[max(0, at - 2) : at])
        helps = before.endswith(("て", "で", "では", "じゃ")) or (at and clause[at - 1].speech.startswith("形容詞"))
        if word.form in EXISTS_JAPANESE and not helps:
            return True
    return False


def _alike(one: str, other: str) -> bool:
    """Whether words are of one kind: blurred and blurry, 飛ぶ and 飛行."""
    if one.isascii() or other.isascii():
        return one == other or (len(one) > 2 and one[:3] == other[:3])
    return one == other or bool(set(re.findall("[一-鿿]", one)) & set(other))
