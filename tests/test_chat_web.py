"""Imp Chat: its conversation without gradio, and its page in a real browser."""

import asyncio
import json
import os
import re
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
from imp_kit.chat_web import conversation, look
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
    assert model.switch("imp-nano")
    assert not model.switch("imp-nano")
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
        show_entries(
            [Found(evil, (0.1, 0.2, 0.3, 0.4), answer, b"jpeg"), Found(evil, None, answer, b"")], language, True
        ),
        show_entries([Notice("model_changed", {"name": evil})], language, True),
        show_current(evil, evil, True, language),
        show_notice(evil, language, True),
        show_about(evil, language),
    ]
    for html in shown:
        assert "<img src=x" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#x27;" in html
    assert show_notice("", language, True) == ""


FOLDER = "/tmp/imp-kit-chat-test"


def through_guard(path, *, method="GET", headers=(), body=b"", answer=b"<html></html>", host=b"127.0.0.1:7860"):
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

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"host", host), *headers]}
    asyncio.run(Guard(server, FOLDER)(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent), dict(sent[0]["headers"])


def test_the_gate_lets_through_what_a_page_needs():
    for path in ("/", "/config", "/assets/a.js", f"/gradio_api/file={FOLDER}/x/a.png", "/gradio_api/heartbeat/ab1"):
        assert through_guard(path)[0] == 200, path
    event = json.dumps({"data": [{"path": f"{FOLDER}/a.png"}, "http://a question/ with an address"]}).encode()
    assert through_guard("/gradio_api/queue/join", method="POST", body=event)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=http://127.0.0.1/a.png", "/gradio_api/file=https://example.org", "/monitoring"),
        *("/gradio_api/proxy=https://example.org/", "/gradio_api/api/predict", "/gradio_api/call/answer", "/login"),
        *("/gradio_api/file=/etc/passwd", f"/gradio_api/file={FOLDER}", f"/gradio_api/file={FOLDER}/../a.png"),
        *("/gradio_api/file=a.png", f"/gradio_api/file={FOLDER}-2/a.png", f"/gradio_api/file={FOLDER}/a\0"),
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
        b'{"data": [{"path": "/etc/passwd"}]}',
        b'{"data": [{"path": null}]}',
        b"[" * 100_000,
        b"no JSON",
        b'{"data": "' + b"a" * 1_000_001 + b'"}',
    ):
        for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/run/predict/"):
            assert through_guard(path, method="POST", body=event)[0] == 400


def test_the_gate_refuses_names_that_are_not_this_machines(monkeypatch):
    """A web page can let its own name lead to this machine; Colab's and JupyterHub's proxies may have other names."""
    for name in (b"127.0.0.1:7860", b"localhost:7860", b"[::1]:7860"):
        assert through_guard("/", host=name)[0] == 200
    for name in (b"evil.example", b"localhost.evil.example", b""):
        assert through_guard("/", host=name)[0] == 404
        assert through_guard("/gradio_api/queue/join", method="POST", body=b'{"data": []}', host=name)[0] == 404
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/someone/")
    assert through_guard("/", host=b"hub.example")[0] == 200


def test_only_what_was_uploaded_is_opened(tmp_path, monkeypatch):
    """Gradio itself does not check a path whose JSON is not marked as a file."""
    pytest.importorskip("gradio")
    from imp_kit.chat_web.app import _path

    folder, own = tmp_path / "uploads", tmp_path / "private.png"
    (folder / "a").mkdir(parents=True)
    for file in (folder / "a" / "bus.png", own):
        file.write_bytes(b"any")
    (folder / "link.png").symlink_to(own)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert _path(None) is None
    assert _path({"path": str(folder / "a" / "bus.png")}) == str(folder / "a" / "bus.png")
    for path in (
        str(own),
        "/dev/zero",
        str(folder / ".." / "private.png"),
        str(folder / "link.png"),
        "a\0b",
        5,
        None,
        "",
    ):
        with pytest.raises(Problem, match="no longer there"):
            _path({"path": path})
    for payload in ("text", [1], {"url": "http://127.0.0.1/"}):
        with pytest.raises(Problem, match="no longer there"):
            _path(payload)


def test_the_style_sheet_fetches_nothing():
    assert look.CSS.count("{") == look.CSS.count("}") > 40
    assert not re.search(r"url\(|@import|//", look.CSS)


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


@pytest.mark.parametrize(("hub", "package"), [("0.36.2", '"gradio<6"'), ("1.2.0", "gradio")])
def test_without_gradio_the_command_says_what_to_install(hub, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("huggingface_hub.__version__", hub)
    with pytest.raises(SystemExit, match="2"):
        main(["chat-web"])
    assert capsys.readouterr().err == f"imp-kit: Imp Chat needs gradio: pip install {package}.\n"


pages = pytest.mark.skipif(
    not (has("gradio") and CHROMIUM), reason="a page in a browser needs gradio (pip install gradio) and Chromium"
)
# Prints whatever this process asks of another machine, or of its name service.
WATCHED = """
import sys
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")
def watch(event, values):
    if event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in LOCAL:
        print("OUTSIDE", values[1], flush=True)
    if event == "socket.getaddrinfo" and values[0] not in (None, *LOCAL):
        print("OUTSIDE", values[0], flush=True)
sys.addaudithook(watch)
from imp_kit.tools.cli import main
main(["chat-web", *sys.argv[1:]])
"""
FIRST_WORD = """
    document.querySelector('#imp-ask').click();
    window.seen = [];
    new MutationObserver(() => {
        const text = document.querySelector('#imp-current .imp-answered')?.innerText ?? '';
        if (text && window.seen.at(-1) !== text) window.seen.push(text);
    }).observe(document.querySelector('#imp-current'), {subtree: true, childList: true, characterData: true});
"""


class Served:
    """The command in a process of its own, with an English tab for its first visitor."""

    def __init__(self, folder, *arguments):
        self.log = folder / "log"
        self.folder = folder / "temporary"
        self.folder.mkdir()
        command = [sys.executable, "-c", WATCHED, "--checkpoint", "imp-nano", "--device", "cpu", *arguments]
        # A proxy that is not there: nothing may be asked through it.
        proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **proxy, "TMPDIR": str(self.folder)}
            )
        end = time.monotonic() + 120
        while "Ctrl-C ends it" not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.2)
        self.url = next(word for word in self.output().split() if word.startswith("http://127.0.0.1:"))

    def output(self):
        return self.log.read_text("utf-8")

    def status(self, path, **request):
        """The HTTP status of an address."""
        try:
            with urlopen(Request(self.url + path, **request), timeout=60) as answer:
                return answer.status
        except HTTPError as error:
            return error.code

    def end(self, how=signal.SIGINT):
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    page = Served(tmp_path_factory.mktemp("served"))
    yield page
    if page.process.poll() is None:
        page.end()


@pytest.fixture(scope="module")
def browser():
    with Browser() as chromium:
        yield chromium


@pytest.fixture
def visit(served, browser):
    """Open the page in a tab of a new visitor, once it can be used."""
    tabs = []

    def open_tab(language="en-US", size=(1280, 900)):
        tab = browser.tab(language, size)
        tabs.append(tab)
        tab.open(served.url)
        wanted = TEXTS[preferred(language)]["ask"]
        tab.wait(f"document.querySelector('#imp-ask')?.innerText.trim() === {json.dumps(wanted)}")
        tab.wait("document.querySelector('#imp-model input')?.value.startsWith('imp-nano ·')")
        return tab

    yield open_tab
    for tab in tabs:
        outside = [url for url in tab.requests() if not url.startswith((served.url, "data:", "blob:", "about:"))]
        assert tab.requests()
        assert outside == []
        assert tab.errors() == []
        tab.close()
    assert "OUTSIDE" not in served.output()
    assert "Traceback" not in served.output(), served.output()[-3000:]


def upload(tab, path):
    """Choose a file; wait until its picture is there."""
    tab.choose_file("#imp-image input[type=file]", path)
    tab.wait("document.querySelector('#imp-image img')?.naturalWidth")


def asked_in(tab, question, find=False):
    """Ask and wait for the answer: what the conversation says then."""
    count = tab.run("document.querySelectorAll('#imp-history .imp-answered').length")
    tab.type("#imp-question textarea", question, enter=not find)
    if find:
        tab.click("#imp-find")
    tab.wait(f"document.querySelectorAll('#imp-history .imp-answered').length > {count}")
    return tab.run("[...document.querySelectorAll('#imp-history .imp-answered')].at(-1).innerText.trim()")


@pages
@pytest.mark.slow
def test_a_visitor_uploads_asks_follows_up_and_finds(visit, served, model):
    tab, chat = visit(), model.imp.chat(DOOR)
    upload(tab, DOOR)
    assert asked_in(tab, "What color is the door?") == chat.say("What color is the door?")
    assert asked_in(tab, "And the person?") == chat.say("And the person?")
    assert asked_in(tab, "the door", find=True) == "the door: left 0.59, top 0.02, right 0.97, bottom 0.98"
    assert tab.run("document.querySelector('#imp-history .imp-box img').naturalWidth") == 640
    assert "imp-nano · cpu fp32 · " in tab.text("#imp-history")
    assert "It knows only simple drawings" in tab.text("#imp-about")
    tab.click("#imp-new button, button#imp-new")
    tab.wait("!document.querySelector('#imp-history .imp-answered')")
    assert asked_in(tab, "What color is the door?") == "The door is green."  # of the same picture


@pages
@pytest.mark.slow
def test_examples_are_answered_right(visit):
    tab = visit()
    for number, answer in enumerate(
        ["The bus is red and white.", "The door is green.", "the door: left 0.59", "I only know drawings."], 1
    ):
        tab.click(f"#imp-examples button:nth-child({number})")
        tab.wait(f"document.querySelector('#imp-history').innerText.includes({json.dumps(answer)})")
    assert tab.run("document.querySelector('#imp-image img').naturalWidth") == 451  # of the cat
    time.sleep(0.5)
    assert tab.run("document.querySelectorAll('#imp-history .imp-answered').length") == 1


@pages
@pytest.mark.slow
def test_an_answer_grows_on_the_page(visit, model):
    tab = visit()
    upload(tab, BUS)
    tab.type("#imp-question textarea", "Describe the image in detail.")
    tab.run(FIRST_WORD)
    whole = str(model.imp.ask(BUS, "Describe the image in detail."))
    tab.wait(f"document.querySelector('#imp-history').innerText.includes({json.dumps(whole)})")
    seen = tab.run("window.seen")
    assert all(whole.startswith(text) for text in seen)
    assert seen[0] != whole


@pages
@pytest.mark.slow
def test_what_goes_wrong_is_one_sentence_in_the_readers_language(visit, tmp_path):
    tab, broken = visit("ja-JP"), tmp_path / "broken.png"
    broken.write_bytes(Path(BUS).read_bytes()[:900])
    tab.type("#imp-question textarea", COLORS, enter=True)
    tab.wait("document.querySelector('#imp-notice [role=alert]')")
    assert tab.text("#imp-notice [role=alert]") == TEXTS["ja"]["error_no_image"]
    assert tab.run("document.querySelector('#imp-question textarea').value") == COLORS  # it is not lost
    upload(tab, BUS)
    tab.click("#imp-ask")
    tab.wait("document.querySelector('#imp-history .imp-answered')")
    tab.choose_file("#imp-image input[type=file]", broken)
    tab.wait(f"document.querySelector('#imp-notice').innerText.includes({json.dumps(TEXTS['ja']['error_file'])})")
    tab.wait("document.querySelector('#imp-image img')?.naturalWidth === 640")  # the bus again
    assert tab.run("document.querySelectorAll('#imp-history .imp-answered').length") == 1
    assert asked_in(tab, "Is there a cat?") == "No, there is no cat."
    tab.click("#imp-ask")
    tab.wait(f"document.querySelector('#imp-notice').innerText.includes({json.dumps(TEXTS['ja']['error_empty'])})")
    asked_in(tab, "the bus", find=True)
    tab.type("#imp-question textarea", "bus " * 3000, enter=True)
    tab.wait(f"document.querySelector('#imp-notice').innerText.includes({json.dumps(TEXTS['ja']['error_long'])})")
    assert tab.run("document.querySelectorAll('#imp-history .imp-answered').length") == 3


@pages
@pytest.mark.slow
def test_two_visitors_at_once_have_their_own_conversations(visit):
    one, two = visit(), visit("ko-KR")
    upload(one, BUS)
    upload(two, DOOR)
    one.type("#imp-question textarea", COLORS, enter=True)
    two.type("#imp-question textarea", "What color is the door?", enter=True)
    for tab, answer, other in (
        (one, "The bus is red and white.", "door"),
        (two, "The door is green.", "bus"),
    ):
        tab.wait(f"document.querySelector('#imp-history').innerText.includes({json.dumps(answer)})")
        assert other not in tab.text("#imp-history")
    assert asked_in(one, "What color is it?") == "The bus is red and white."
    assert "토큰" in two.text("#imp-history")


@pages
@pytest.mark.slow
def test_a_visitor_who_leaves_keeps_nobody_waiting(visit, served, browser):
    leaving, other = browser.tab(), visit()
    leaving.open(served.url)
    leaving.wait("document.querySelector('#imp-model input')?.value.startsWith('imp-nano ·')")
    upload(leaving, BUS)
    upload(other, DOOR)
    leaving.type("#imp-question textarea", "Describe the image in detail.", enter=True)
    leaving.call("Page.close")
    assert asked_in(other, "What color is the door?") == "The door is green."


@pages
@pytest.mark.slow
def test_the_language_of_the_page_changes_and_the_conversation_stays(visit):
    tab = visit()
    upload(tab, BUS)
    asked_in(tab, COLORS)
    for number, language in ((2, "ja"), (3, "ko"), (1, "en")):
        texts = TEXTS[language]
        tab.click(f"#imp-language label:nth-child({number})")
        tab.wait(f"document.querySelector('#imp-ask').innerText.trim() === {json.dumps(texts['ask'])}")
        for selector, name in (("#imp-new", "new"), ("#imp-settings", "settings"), ("#imp-about", "language_note")):
            assert texts[name] in tab.text(selector)
        assert texts["model"] in tab.text("#imp-model")
        assert tab.run("document.querySelector('#imp-question textarea').placeholder") == texts["placeholder"]
        assert "The bus is red and white." in tab.text("#imp-history")
        assert texts["summary"].partition("{tokens}")[2].partition("{")[0].strip() in tab.text("#imp-history")


@pages
@pytest.mark.slow
def test_the_menu_keeps_the_model_where_another_is_not_there(visit, tmp_path):
    tab = visit()
    upload(tab, BUS)
    asked_in(tab, COLORS)
    tab.click("#imp-model input")
    tab.wait("document.querySelectorAll('[role=option]').length === 6")
    assert "imp-v1-3b · not on this machine, 6.4 GB" in tab.run(
        "[...document.querySelectorAll('[role=option]')].map(option => option.innerText).join()"
    )
    tab.click("[role=option]:nth-child(2)")
    tab.wait("document.querySelector('#imp-notice [role=alert]')")
    assert "is not on this machine. Its 6.4 GB come when" in tab.text("#imp-notice")
    tab.wait("document.querySelector('#imp-model input').value.startsWith('imp-nano ·')")
    assert asked_in(tab, "Is there a cat?") == "No, there is no cat."
    assert tab.run("document.querySelectorAll('#imp-history .imp-answered').length") == 2


@pages
@pytest.mark.slow
def test_a_slow_answer_is_stopped_and_another_model_answers(browser, oracle, tmp_path):
    """A tiny random checkpoint, which never ends an answer by itself."""
    folder = write_checkpoint(oracle, tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": 4096}), "utf-8")  # room for 1024 tokens
    page = Served(tmp_path, "--checkpoint", str(folder))
    tab = browser.tab()
    tab.open(page.url)
    tab.wait("document.querySelector('#imp-model input')?.value.startsWith('tiny ·')")
    other = browser.tab("ko-KR")
    other.open(page.url)
    other.wait("document.querySelector('#imp-model input')?.value.startsWith('tiny ·')")
    tab.click("#imp-settings button")
    tab.wait("document.querySelector('#imp-max-new-tokens input[type=number]')?.clientWidth")
    tab.run("document.querySelector('#imp-max-new-tokens input[type=number]').select()")
    tab.call("Input.insertText", text="1024")
    tab.click("#imp-examples button:nth-child(1)")
    tab.wait("document.querySelector('#imp-current .imp-answered')?.innerText")
    other.click("#imp-examples button:nth-child(2)")
    other.wait(f"document.querySelector('#imp-notice').innerText.includes({json.dumps(TEXTS['ko']['queued'])})")
    tab.click("#imp-stop")
    tab.wait("document.querySelector('#imp-history').innerText.includes('stopped; the model does not remember')")
    other.wait(f"document.querySelector('#imp-history').innerText.includes({json.dumps('100토큰')})")
    other.close()
    tab.click("#imp-model input")
    tab.click("[role=option]:nth-child(2)")
    tab.wait("document.querySelector('#imp-notice').innerText.includes('imp-nano answers now.')")
    assert "It knows only simple drawings" in tab.text("#imp-about")
    assert tab.text("#imp-history .imp-answered") == ""
    assert asked_in(tab, COLORS) == "The bus is red and white."
    tab.close()
    page.end()


@pages
@pytest.mark.slow
def test_settings_hold_for_the_next_answer(visit):
    tab = visit()
    upload(tab, BUS)
    tab.click("#imp-settings button")
    tab.run("document.querySelector('#imp-max-new-tokens input[type=number]').select()")
    tab.call("Input.insertText", text="3")
    tab.click("#imp-question textarea")
    time.sleep(1)  # a number counts when its field is left
    assert len(asked_in(tab, COLORS).split()) <= 3
    assert "cut at the longest length" in tab.text("#imp-history")
    tab.run("document.querySelector('#imp-seed input').select()")
    tab.call("Input.insertText", text="-5")
    tab.type("#imp-question textarea", COLORS, enter=True)
    tab.wait("document.querySelector('#imp-notice').innerText.includes('A setting cannot be used.')")


@pages
@pytest.mark.slow
def test_pictures_come_from_the_camera_and_from_the_clipboard(visit, browser, served):
    tab = visit()
    tab.click("#imp-image [aria-label='Capture from camera']")
    tab.click("#imp-image [title='grant webcam access']")
    tab.wait("document.querySelector('#imp-image video')?.videoWidth")
    tab.click("#imp-image [aria-label='capture photo']")
    tab.wait("document.querySelector('#imp-image img[src]')?.naturalWidth")
    assert asked_in(tab, "What is this?")
    tab = visit()
    browser.allow(tab, served.url, "clipboardReadWrite")
    tab.run(
        """(async () => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 200;
            canvas.getContext('2d').fillRect(0, 0, 100, 100);
            const blob = await new Promise(done => canvas.toBlob(done, 'image/png'));
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        })()"""
    )
    tab.click("#imp-image [aria-label='Paste from clipboard']")
    tab.wait("document.querySelector('#imp-image img')?.naturalWidth === 200")
    assert asked_in(tab, "What is this?")


@pages
@pytest.mark.slow
@pytest.mark.parametrize(("language", "is_dark"), [("en-US", False), ("ja-JP", True), ("ko-KR", False)])
def test_a_phone_shows_all_of_it(visit, language, is_dark):
    tab = visit(language, (390, 844))
    tab.dark(is_dark)
    upload(tab, BUS)
    assert asked_in(tab, COLORS) == "The bus is red and white."
    asked_in(tab, "the bus", find=True)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    wide = tab.run(
        "[...document.querySelectorAll('button, input, textarea, img, p')].filter(e => "
        "e.getBoundingClientRect().width && e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 200))"
    )
    assert wide == []
    light = tab.run("getComputedStyle(document.querySelector('#imp-talk')).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(light[:3]) < 80) == is_dark


@pages
@pytest.mark.slow
def test_files_of_a_visitor_are_for_no_other(served, visit):
    tab = visit()
    upload(tab, BUS)
    (folder,) = served.folder.glob("imp-kit-chat-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in ("/etc/passwd", str(served.log), "log", str(folder), f"{folder}/../../log", "http://127.0.0.1:9/a"):
        assert served.status(f"gradio_api/file={path}") in (403, 404), path
    remote = {"data": [None, {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}, "en"]}
    outside = {"data": [None, {"path": str(served.log), "meta": {"_type": "gradio.FileData"}}, "en"]}
    for event in (remote, outside):
        body = json.dumps({**event, "fn_index": 2, "session_hash": "abc"}).encode()
        sent = {"data": body, "headers": {"Content-Type": "application/json"}}
        assert served.status("gradio_api/run/predict", **sent) == 400
    for path in ("monitoring", "gradio_api/runs", "gradio_api/api/predict", "docs"):
        assert served.status(path) == 404
    assert served.status("gradio_api/upload", data=b"", headers={"Sec-Fetch-Site": "cross-site"}) == 404


@pages
@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_end_leaves_no_picture_behind(browser, tmp_path, how, code):
    page, tab = Served(tmp_path), browser.tab()
    tab.open(page.url)
    upload(tab, BUS)
    port = page.url.rstrip("/").rpartition(":")[2]
    assert list(page.folder.rglob("bus.png"))
    taken = subprocess.run(
        [sys.executable, "-m", "imp_kit", "chat-web", "--checkpoint", "imp-nano", "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (taken.returncode, taken.stderr.startswith(f"imp-kit: Port {port} is used by other programs")) == (2, True)
    assert page.end(how) == code
    tab.close()
    assert list(page.folder.glob("imp-kit-chat-*")) == []
    assert "Traceback" not in page.output()


@pages
@pytest.mark.slow
def test_a_notebook_opens_one_page_at_a_time(monkeypatch):
    """`imp_kit.chat_web.launch()`, twice."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    first = imp_kit.chat_web.launch("imp-nano", device="cpu")
    second = imp_kit.chat_web.launch("imp-nano", device="cpu")
    assert repr(second) == f"<Imp Chat at {second.url}; close() ends it>"
    with urlopen(second.url) as answer:
        assert b"Imp Chat" in answer.read()
    assert second.url == first.url or pytest.raises(OSError, urlopen, first.url)
    second.close()
    assert "GRADIO_TEMP_DIR" not in os.environ
    with pytest.raises(imp_kit.SettingError, match="port is 0; give a whole number from 1 to 65535"):
        imp_kit.chat_web.launch("imp-nano", device="cpu", port=0)
