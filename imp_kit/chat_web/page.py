"""The conversation, and what else the page writes itself, as HTML in which every text is escaped."""

import base64
import html
from collections.abc import Sequence

from imp_kit.answers import Answer
from imp_kit.chat_web.conversation import Asked, Found, Notice
from imp_kit.chat_web.texts import say
from imp_kit.checkpoints.hub import NANO


def show_entries(entries: Sequence[Asked | Found | Notice], language: str, has_image: bool) -> str:
    """A conversation; in its place what to do first where there is none yet."""
    if not entries:
        return _wrap(f"<p class='imp-hint'>{_text(language, 'begin' if has_image else 'empty')}</p>", language)
    return _wrap("".join(_show(entry, language) for entry in entries), language)


def show_current(question: str, text: str, find: bool, language: str) -> str:
    """The question that is being answered, and as much of its answer as there is."""
    asked = say(language, "find_request", phrase=question) if find else question
    return _wrap(_bubble("asked", asked) + _bubble("answered", text, more=" imp-writing"), language)


def show_notice(text: str, language: str, is_problem: bool) -> str:
    """A line above the question: what went wrong, or what happens now; nothing for no text."""
    if not text:
        return ""
    kind, role = ("problem", "alert") if is_problem else ("note", "status")
    return f"<p class='imp-{kind}' role='{role}' lang='{language}'>{html.escape(text)}</p>"


def show_about(name: str, language: str) -> str:
    """Which checkpoint answers, and what it cannot do."""
    limits = say(language, "about_nano" if name == NANO else "about_imp")
    note = say(language, "language_note")
    return (
        f"<p class='imp-about' lang='{language}'><b>{html.escape(name)}</b> · {html.escape(limits)}"
        f"<br>{html.escape(note)}</p>"
    )


def show_header(language: str) -> str:
    """The page's name, and a sentence on what it is for."""
    tagline = _text(language, "tagline")
    return f"<div class='imp-header' lang='{language}'><h1>Imp Chat</h1><p>{tagline}</p></div>"


def show_label(text: str, language: str) -> str:
    return f"<p class='imp-label' lang='{language}'>{html.escape(text)}</p>"


def _show(entry: Asked | Found | Notice, language: str) -> str:
    if isinstance(entry, Notice):
        return f"<p class='imp-break'>{_text(language, entry.name, **entry.values)}</p>"
    if isinstance(entry, Asked):
        words = "" if entry.knows_words else _text(language, "unknown_words")
        about = _summary(entry.answer, language) if entry.answer else _text(language, "stopped")
        return _bubble("asked", entry.question) + _bubble("answered", entry.text) + _small(words) + _small(about)
    asked = _bubble("asked", say(language, "find_request", phrase=entry.phrase))
    if entry.fractions is None:
        said = say(language, "not_found", checkpoint=entry.answer.checkpoint, answer=entry.answer.text)
        return asked + _bubble("answered", said) + _small(_summary(entry.answer, language))
    sides = dict(zip(("x0", "y0", "x1", "y1"), (f"{side:.2f}" for side in entry.fractions), strict=True))
    where = say(language, "found", phrase=entry.phrase, **sides)
    picture = f"<img src='data:image/jpeg;base64,{base64.b64encode(entry.drawn).decode()}' alt='{html.escape(where)}'>"
    small = _small(_text(language, "fractions")) + _small(_summary(entry.answer, language))
    return f"{asked}<div class='imp-answered imp-box'>{picture}<p>{html.escape(where)}</p></div>{small}"


def _summary(answer: Answer, language: str) -> str:
    text = _text(
        language,
        "summary",
        checkpoint=answer.checkpoint,
        device=answer.device,
        dtype=answer.dtype,
        tokens=answer.tokens,
        seconds=f"{answer.seconds.total:.2f}",
    )
    return f"{text} · {_text(language, 'cut')}" if answer.finish == "length" else text


def _text(language: str, name: str, /, **values: object) -> str:
    return html.escape(say(language, name, **values))


def _bubble(kind: str, text: str, more: str = "") -> str:
    return f"<p class='imp-{kind}{more}' dir='auto'>{html.escape(text)}</p>"


def _small(text: str) -> str:
    """A line below an answer, of HTML; nothing for no text."""
    return f"<p class='imp-small'>{text}</p>" if text else ""


def _wrap(content: str, language: str) -> str:
    return f"<div class='imp-talk' lang='{language}'>{content}</div>"
