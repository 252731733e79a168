"""Imp Chat: its conversation without gradio, and its page in a real browser."""

import asyncio
import json
import os
import signal
import stat
import string
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from browser import CHROMIUM, Browser
from oracle import write_checkpoint
from PIL import Image

import imp_kit
from imp_kit.chat_web import conversation
from imp_kit.chat_web.conversation import Asked, Found, Notice, Problem, Session, SharedModel, read_settings
from imp_kit.chat_web.guard import Guard
from imp_kit.chat_web.page import show_about, show_current, show_entries, show_notice
from imp_kit.chat_web.texts import LANGUAGES, TEXTS, preferred, say
from imp_kit.checkpoints.hub import HUB_IDS
from imp_kit.system.extras import has
from imp_kit.tools.cli import main

BUS, DOOR, CAT = (str(imp_kit.sample(name)) for name in ("bus.png", "door.png", "cat.jpg"))
COLORS = "What are the colors of the bus in the image?"
GREEDY = {"max_new_tokens": 100, "temperature": 0.0, "seed": None}


@pytest.fixture(scope="module")
def model():
    return SharedModel("imp-nano", device="cpu")


def ask(model, session, text, *, find=False, **settings):
    """The last entry, after a question was answered."""
    session.accept(text, find, GREEDY | settings)
    for _ in session.answer(model):
        pass
    return session.entries[-1]


def looking_at(path):
    session = Session()
    session.show(path)
    return session


def test_every_language_has_every_text_with_the_same_values():
    fields = {
        language: {name: {field for _, field, *_ in string.Formatter().parse(text)} for name, text in texts.items()}
        for language, texts in TEXTS.items()
    }
    assert list(TEXTS) == list(LANGUAGES)
    assert fields["ja"] == fields["ko"] == fields["en"]
    assert all(text.strip() for texts in TEXTS.values() for text in texts.values())


@pytest.mark.parametrize(
    ("header", "language"),
    [("ja,en-US;q=0.9", "ja"), ("de-DE, ko-KR;q=0.8, en;q=0.5", "ko"), ("fr", "en"), ("", "en"), ("EN-gb", "en")],
)
def test_the_first_language_is_that_of_the_browser(header, language):
    assert preferred(header) == language


def test_a_conversation_is_that_of_the_kit(model):
    """Streamed questions, a follow-up, a box: what `chat` and `locate` give."""
    session, chat = looking_at(DOOR), model.imp.chat(DOOR)
    for question in ("What color is the door?", "And what color is the shirt?"):
        session.accept(question, False, GREEDY)
        pieces = list(session.answer(model))
        assert pieces[-1] == session.entries[-1].text == chat.say(question)
        assert len(pieces) > 2
        assert all(later.startswith(piece) for piece, later in zip(pieces, pieces[1:], strict=False))
    found, box = ask(model, session, "Where is the door?", find=True), model.imp.locate(DOOR, "the door")
    assert (found.phrase, found.fractions) == (box.phrase, box.fractions)
    assert found.drawn.startswith(b"\xff\xd8\xff")
    assert ask(model, session, "And the person?").answer.prompt == chat.say("And the person?").prompt


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Where is the bus?", "the bus"),
        ("where are the red cups ", "the red cups"),
        ("Where's the bus", "the bus"),
        ("the bus.", "the bus"),
        ("nowhere is a word", "nowhere is a word"),
    ],
)
def test_a_question_for_a_place_is_a_phrase_to_find(text, phrase):
    assert conversation.read_phrase(text) == phrase


def test_what_is_not_there_is_not_found(model):
    found = ask(model, looking_at(DOOR), "the cat", find=True)
    assert (found.fractions, found.answer.text) == (None, "There is no cat.")
    assert "imp-nano did not find it. It said: “There is no cat.”" in show_entries([found], "en", True)


@pytest.mark.parametrize(
    ("text", "find", "problem"),
    [
        (" \n", False, "error_empty"),
        ("", True, "error_phrase"),
        (" ?", True, "error_phrase"),
        ("What is <image>?", False, "error_marker"),
        ("a" * 20_001, False, "error_long"),
        ("\ud800?", False, "error_other"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_the_conversation_kept(model, text, find, problem):
    session = looking_at(BUS)
    ask(model, session, COLORS)
    with pytest.raises(Problem) as caught:
        session.accept(text, find, GREEDY)
    assert caught.value.name == problem
    assert [entry.question for entry in session.entries] == [COLORS]
    assert ask(model, session, "What color is it?").answer.prompt.count("USER:") == 2


def test_a_question_that_is_too_long_in_tokens_keeps_the_conversation(model):
    session = looking_at(BUS)
    ask(model, session, COLORS)
    with pytest.raises(Problem, match="too long for the model"):
        ask(model, session, "bus " * 3000)
    assert session.pending is None
    assert ask(model, session, "What color is it?").answer.prompt.count("USER:") == 2


def test_a_question_needs_a_picture_and_waits_for_its_turn(model):
    session = Session()
    with pytest.raises(Problem, match="There is no picture yet"):
        session.accept(COLORS, False, GREEDY)
    session.show(BUS)
    session.accept(COLORS, False, GREEDY)
    with pytest.raises(Problem, match="still answering"):
        session.accept(COLORS, False, GREEDY)
    assert len(list(session.answer(model))) > 2
    assert list(session.answer(model)) == []  # nothing more was asked
    assert len(session.entries) == 1


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ((100, 0, None), GREEDY),
        ((7.0, 0.5, 3), {"max_new_tokens": 7, "temperature": 0.5, "seed": 3}),
        ((0, 0, None), None),
        ((1025, 0, None), None),
        ((1.5, 0, None), None),
        ((True, 0, None), None),
        (("9", 0, None), None),
        ((9, 2.1, None), None),
        ((9, float("nan"), None), None),
        ((9, 0, -1), None),
        ((9, 0, 1.5), None),
        ((9, 0, 2.0**60), None),
        ((None, 0, None), None),
    ],
)
def test_settings_are_read_or_refused(settings, read):
    if read:
        assert read_settings(*settings) == read
        return
    with pytest.raises(Problem, match="Longest answer: a whole number from 1 to 1024"):
        read_settings(*settings)


def test_bad_files_are_refused_and_the_conversation_kept(model, tmp_path, monkeypatch):
    session = looking_at(BUS)
    ask(model, session, COLORS)
    broken, large, gone = tmp_path / "broken.png", tmp_path / "large.png", tmp_path / "gone.png"
    broken.write_bytes(Path(BUS).read_bytes()[:900])
    Image.new("1", (10_001, 10_000)).save(large)
    for path, text in (
        (broken, "This file cannot be read as a picture. Save it as JPEG or PNG and choose it again."),
        (large, "This picture has more than 100 million pixels. Make it smaller and choose it again."),
        (gone, "This picture is no longer there. Choose it again."),
        (tmp_path, "This picture is no longer there. Choose it again."),
    ):
        with pytest.raises(Problem) as caught:
            session.show(str(path))
        assert str(caught.value) == caught.value.text("en") == text
    monkeypatch.setattr(conversation, "MAX_FILE_BYTES", 1000)
    with pytest.raises(Problem, match="0 MB are possible"):
        session.show(DOOR)
    assert (session.path, len(session.entries)) == (BUS, 1)
    assert ask(model, session, "What color is it?").answer.prompt.count("USER:") == 2


def test_another_picture_begins_anew_and_a_copy_of_the_same_does_not(model, tmp_path):
    session, copy = looking_at(BUS), tmp_path / "copy.png"
    ask(model, session, COLORS)
    copy.write_bytes(Path(BUS).read_bytes())
    assert not session.show(str(copy))
    assert len(session.entries) == 1
    assert session.show(DOOR)
    assert session.entries == []
    assert ask(model, session, "What color is the door?").text == "The door is green."
    assert session.show(None)
    assert (session.path, session.entries) == (None, [])


def test_two_sessions_share_the_model_and_nothing_else(model):
    """One question each, piece by piece in turns, from two threads."""
    first, second = looking_at(BUS), looking_at(DOOR)
    ask(model, first, COLORS)
    first.accept("What color is it?", False, GREEDY)
    second.accept("What color is the door?", False, GREEDY)
    threads = [threading.Thread(target=lambda s=s: list(s.answer(model))) for s in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chat = model.imp.chat(BUS)
    assert [e.text for e in first.entries] == [str(chat.say(COLORS)), str(chat.say("What color is it?"))]
    assert [e.text for e in second.entries] == ["The door is green."]


def test_an_answer_that_is_stopped_is_shown_and_forgotten(model):
    session = looking_at(BUS)
    session.accept(COLORS, False, GREEDY)
    answer = session.answer(model)
    begun = next(answer)
    session.stop()
    assert list(answer) == []
    (entry,) = session.entries
    assert (entry.text, entry.answer) == (begun, None)
    assert "stopped; the model does not remember this answer" in show_entries([entry], "en", True)
    assert ask(model, session, COLORS).answer.prompt.count("USER:") == 1


def test_an_answer_that_nobody_reads_on_keeps_nobody_waiting(model):
    left, other = looking_at(BUS), looking_at(DOOR)
    left.accept(COLORS, False, GREEDY)
    answer = left.answer(model)
    next(answer)  # and its tab is closed
    assert ask(model, other, "What color is the door?").text == "The door is green."
    answer.close()
    assert left.pending is None


def test_a_new_conversation_ends_the_answer_of_the_old_one(model):
    session = looking_at(BUS)
    session.accept(COLORS, False, GREEDY)
    answer = session.answer(model)
    next(answer)
    session.begin()
    session.accept("Is there a cat?", False, GREEDY)
    assert list(answer) == []
    assert session.entries == []
    list(session.answer(model))
    assert [entry.question for entry in session.entries] == ["Is there a cat?"]
    assert session.entries[0].answer.prompt.count("USER:") == 1


def test_conversations_that_need_too_much_memory_are_set_aside(monkeypatch):
    model = SharedModel("imp-nano", device="cpu")
    first, second = looking_at(BUS), looking_at(DOOR)
    ask(model, first, COLORS)
    monkeypatch.setattr(conversation, "MAX_KEPT_BYTES", 1)
    ask(model, second, "What color is the door?")
    assert list(model._chats) == [second]
    assert ask(model, first, "What color is it?").answer.prompt.count("USER:") == 1
    assert [type(entry) for entry in first.entries] == [Asked, Notice, Asked]
    assert first.entries[1].name == "set_aside"
    model.forget(first)
    assert list(model._chats) == []


def test_the_menu_says_how_each_model_would_run_here(model, monkeypatch):
    monkeypatch.setattr(conversation, "cached", lambda _: None)
    choices = model.choices()
    assert list(choices) == ["imp-nano", *HUB_IDS]
    assert choices["imp-nano"] == ("ready", {})
    assert choices["imp-v1.5-2b-qwen1.5"] == ("not_downloaded", {"size": "4.5"})
    monkeypatch.setattr(conversation, "cached", lambda hub_id: Path(hub_id))
    assert model.choices()["imp-v1-3b"] == ("slow", {})
    assert say("ko", "not_downloaded", size="4.5") == "이 컴퓨터에 없음, 4.5 GB"


def test_another_model_takes_the_place_and_what_cannot_be_loaded_does_not(oracle, tmp_path, monkeypatch):
    folder = write_checkpoint(oracle, tmp_path / "tiny")
    monkeypatch.setattr(conversation, "cached", lambda _: None)
    model = SharedModel(folder, device="cpu")
    assert (model.name, list(model.choices())) == ("tiny", ["tiny", "imp-nano", *HUB_IDS])
    session = looking_at(BUS)
    ask(model, session, COLORS, max_new_tokens=3)
    model.switch("imp-nano")
    assert (model.name, model.imp.name) == ("imp-nano", "imp-nano")
    assert ask(model, session, COLORS).text == "The bus is red and white."
    assert [type(entry) for entry in session.entries] == [Asked, Notice, Asked]
    assert session.entries[1] == Notice("model_changed", {"name": "imp-nano"})
    with pytest.raises(Problem, match="imp-v1-3b is not on this machine. Its 6.4 GB come when"):
        model.switch("imp-v1-3b")
    with pytest.raises(Problem, match="No|nowhere"):
        model.switch("nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(Problem, match="tiny could not be loaded, so imp-nano still answers. The reason: "):
        model.switch("tiny")
    assert ask(model, session, COLORS).text == "The bus is red and white."


def test_words_that_imp_nano_never_learned_are_noted(model):
    entry = ask(model, looking_at(BUS), "バスは何色ですか？")
    assert not entry.knows_words
    assert "imp-nano learned only simple English" in show_entries([entry], "en", True)
    assert "imp-nano learned" not in show_entries([ask(model, looking_at(BUS), COLORS)], "en", True)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_shown_holds_no_html_of_others(model, language):
    evil = "<img src=x onerror=alert(1)>&\"'"
    answer = ask(model, looking_at(BUS), COLORS).answer
    shown = [
        show_entries([Asked(evil, evil, None, True), Asked(evil, evil, answer, False)], language, True),
        show_entries([Found(evil, (0.1, 0.2, 0.3, 0.4), answer, b"jpeg"), Found(evil, None, answer, b"")], language, True),
        show_entries([Notice("model_changed", {"name": evil})], language, True),
        show_current(evil, evil, True, language),
        show_notice(evil, language, True),
        show_about(evil, language),
    ]
    for html in shown:
        assert "<img src=x" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#x27;" in html
    assert show_notice("", language, True) == ""


def through_guard(path, *, method="GET", headers=(), body=b"", answer=b"<html></html>"):
    """The status and body that a request gets through the gate, with a server behind it that answers all."""
    sent, parts = [], [body[:10], body[10:]]

    async def server(scope, receive, send):
        heard = b""
        while method == "POST" and (message := await receive())["type"] == "http.request":
            heard += message["body"]
            if not message["more_body"]:
                break
        assert heard == (body if method == "POST" else b"")
        length = str(len(answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": answer[:5], "more_body": True})
        await send({"type": "http.response.body", "body": answer[5:]})

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
    asyncio.run(Guard(server)(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent), dict(sent[0]["headers"])


def test_the_gate_lets_through_what_a_page_needs():
    for path in ("/", "/config", "/assets/a.js", "/gradio_api/file=/tmp/x/a.png", "/gradio_api/heartbeat/ab1"):
        assert through_guard(path)[0] == 200, path
    event = json.dumps({"data": [{"path": "/tmp/a.png"}, "http://a question/ with an address"]}).encode()
    assert through_guard("/gradio_api/queue/join", method="POST", body=event)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=http://127.0.0.1/a.png", "/gradio_api/file=https://example.org", "/monitoring"),
        *("/gradio_api/proxy=https://example.org/", "/gradio_api/api/predict", "/gradio_api/call/answer", "/login"),
        *("/gradio_api/process_recording", "/gradio_api/vibe-edit", "/gradio_api/runs", "/gradio_api/deep_link"),
    ],
)
def test_the_gate_refuses_other_routes(path):
    assert through_guard(path)[:2] == (404, b"")


def test_the_gate_refuses_other_sites_and_addresses_in_place_of_files():
    assert through_guard("/gradio_api/upload", headers=[(b"sec-fetch-site", b"cross-site")])[0] == 404
    assert through_guard("/", headers=[(b"sec-fetch-site", b"cross-site")])[0] == 200  # a link to the page
    for event in (
        b'{"data": [{"path": "https://example.org/a.png"}]}',
        b'{"data": [{"path": "\\u0068ttp://example.org/a.png"}]}',
        b'{"data": [[{"a": {"path": "http://example.org/a.png"}}]]}',
        b"no JSON",
        b'{"data": "' + b"a" * 1_000_001 + b'"}',
    ):
        for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/run/predict/"):
            assert through_guard(path, method="POST", body=event)[0] == 400


def test_the_page_fetches_nothing_from_elsewhere():
    page = (
        b'<head><link rel="preconnect" href="https://fonts.googleapis.com" /><link\n rel="preconnect"\n'
        b' href="https://fonts.gstatic.com"\n crossorigin="anonymous"\n/><script\n src="https://cdnjs.example/a.js"\n'
        b' async\n></script><script src="./assets/b.js"></script><link href="./c.css"></head>'
    )
    status, body, headers = through_guard("/", answer=page)
    left = b'<head><script src="./assets/b.js"></script><link href="./c.css"></head>'
    assert (status, body, headers[b"content-length"]) == (200, left, str(len(left)).encode())
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data:")
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="2"):
        main(["chat-web"])
    assert capsys.readouterr().err == "imp-kit: Imp Chat needs gradio: pip install gradio.\n"
