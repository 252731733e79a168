"""The page as gradio's blocks, and the server that gives it to this machine's browsers; for gradio 5 and 6."""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from imp_kit.chat_web import look
from imp_kit.chat_web.conversation import MAX_FILE_BYTES, MAX_NEW_TOKENS, Problem, Session, SharedModel, read_settings
from imp_kit.chat_web.guard import Guard
from imp_kit.chat_web.page import show_about, show_current, show_entries, show_header, show_label, show_notice
from imp_kit.chat_web.texts import ENGLISH, LANGUAGES, preferred, say
from imp_kit.errors import SettingError
from imp_kit.samples import sample

HOST = "127.0.0.1"
EXAMPLES = (  # imp-nano answers each of them right; whether to find a thing
    ("bus.png", "What are the colors of the bus in the image?", False),
    ("door.png", "What color is the door?", False),
    ("door.png", "Where is the door?", True),
    ("cat.jpg", "What is this?", False),
)
UPDATE_SECONDS = 0.05  # between two states of an answer that grows
OLD_FILES = (600, 7200)  # seconds: how often gradio looks for old pictures, and how old they are
UPLOAD_BYTES = 4 * MAX_FILE_BYTES  # up to here a file is refused in the reader's language, above it by the server
IS_5 = gr.__version__.startswith("5.")  # where the look goes to the blocks instead of to their launch


def theme_and_css() -> dict[str, Any]:
    """What gradio takes for the look of a page."""
    fonts = [gr.themes.Font(name) for name in look.FONTS]
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="stone", radius_size="lg", font=fonts, font_mono=fonts)
    return {"theme": theme.set(**look.QUIET), "css": look.CSS}


def build(model: SharedModel, folder: str) -> gr.Blocks:
    """The page, for one model that all visitors share; every browser tab has a session of its own.

    The examples' pictures are copied into `folder`, since gradio serves no others.
    """
    samples = {name: shutil.copy(sample(name), folder) for name, _, _ in EXAMPLES}
    blocks = gr.Blocks(
        title="Imp Chat", analytics_enabled=False, delete_cache=OLD_FILES, **(theme_and_css() if IS_5 else {})
    )
    with blocks:
        session = gr.State(Session(), delete_callback=model.forget)
        with gr.Row(elem_id="imp-top"):
            header = gr.HTML(show_header("en"))
            language = gr.Radio(
                [(name, key) for key, name in LANGUAGES.items()],
                value="en",
                label=ENGLISH["language"],
                show_label=False,
                container=False,
                elem_id="imp-language",
            )
        with gr.Row(elem_id="imp-main"):
            with gr.Column(min_width=300, elem_id="imp-left"):
                picture = gr.Image(
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    label=ENGLISH["image"],
                    placeholder=ENGLISH["drop"],
                    elem_id="imp-image",
                )
                examples_label = gr.HTML(show_label(ENGLISH["examples"], "en"))
                with gr.Row(elem_id="imp-examples"):
                    examples = [gr.Button(text, icon=samples[name], size="sm") for name, text, _ in EXAMPLES]
            with gr.Column(min_width=300, elem_id="imp-more"):
                menu = gr.Dropdown(
                    [model.name], value=model.name, label=ENGLISH["model"], filterable=False, elem_id="imp-model"
                )
                about = gr.HTML(show_about(model.name, "en"), elem_id="imp-about")
                with gr.Accordion(ENGLISH["settings"], open=False, elem_id="imp-settings") as folded:
                    settings = [
                        gr.Slider(
                            *(1, MAX_NEW_TOKENS, 100),
                            step=1,
                            label=ENGLISH["max_new_tokens"],
                            elem_id="imp-max-new-tokens",
                        ),
                        gr.Slider(0, 2, 0, step=0.1, label=ENGLISH["temperature"], elem_id="imp-temperature"),
                        gr.Number(0, precision=0, label=ENGLISH["seed"], elem_id="imp-seed"),
                    ]
            with gr.Column(min_width=300, elem_id="imp-right"):
                with gr.Column(elem_id="imp-talk"), gr.Column():
                    history = gr.HTML(show_entries([], "en", False), elem_id="imp-history")
                    current = gr.HTML(elem_id="imp-current")
                notice = gr.HTML(elem_id="imp-notice")
                question = gr.Textbox(
                    lines=1,
                    max_lines=5,
                    label=ENGLISH["question"],
                    show_label=False,
                    container=False,
                    placeholder=ENGLISH["placeholder"],
                    autofocus=True,
                    elem_id="imp-question",
                )
                with gr.Row(elem_id="imp-buttons"):
                    ask = gr.Button(ENGLISH["ask"], variant="primary", min_width=70, elem_id="imp-ask")
                    find = gr.Button(ENGLISH["find"], min_width=70, elem_id="imp-find")
                    stop = gr.Button(ENGLISH["stop"], visible=False, min_width=70, elem_id="imp-stop")
                    new = gr.Button(ENGLISH["new"], min_width=70, elem_id="imp-new")
    labels = {
        picture: "image",
        menu: "model",
        folded: "settings",
        **dict(zip(settings, ("max_new_tokens", "temperature", "seed"), strict=True)),
        language: "language",
        question: "question",
    }
    values = {ask: "ask", find: "find", stop: "stop", new: "new"}

    def talk(session: Session, language: str) -> dict:
        """The conversation as it is."""
        return {history: show_entries(session.entries, language, session.path is not None)}

    def settled(session: Session, language: str) -> dict:
        """The same, while nothing is being answered."""
        return talk(session, language) | {current: "", notice: "", stop: gr.update(visible=False)}

    def problem(error: Problem, language: str) -> dict:
        return {notice: show_notice(error.text(language), language, True)}

    def translate(session: Session, language: str) -> dict:
        """Every text of the page."""
        choices = [(f"{name} · {say(language, word, **more)}", name) for name, (word, more) in model.choices().items()]
        return {
            **{block: gr.update(label=say(language, name)) for block, name in labels.items()},
            **{button: gr.update(value=say(language, name)) for button, name in values.items()},
            **talk(session, language),
            header: show_header(language),
            picture: gr.update(label=say(language, "image"), placeholder=say(language, "drop")),
            question: gr.update(label=say(language, "question"), placeholder=say(language, "placeholder")),
            examples_label: show_label(say(language, "examples"), language),
            menu: gr.update(label=say(language, "model"), choices=choices, value=model.name),
            about: show_about(model.name, language),
            notice: "",
        }

    def open_page(session: Session, request: gr.Request) -> dict:
        chosen = preferred(request.headers.get("accept-language", ""))
        return translate(session, chosen) | {language: gr.update(value=chosen, label=say(chosen, "language"))}

    def take_picture(session: Session, payload: dict | None, language: str) -> dict:
        try:
            return settled(session, language) if session.show(_path(payload)) else {notice: gr.skip()}
        except Problem as error:
            return problem(error, language) | {picture: session.path}

    def accept(find: bool) -> Callable[..., dict]:
        def take(session: Session, payload: dict | None, language: str, text: str, *numbers: Any) -> dict:
            changed: dict = {}
            try:
                if session.show(_path(payload)):
                    changed = settled(session, language)
            except Problem as error:
                return problem(error, language) | {picture: session.path}
            return changed | ask_next(session, language, text, find, numbers)

        return take

    def ask_next(session: Session, language: str, text: str, find: bool, numbers: tuple) -> dict:
        try:
            accepted = session.accept(text, find, read_settings(*numbers))
        except Problem as error:
            return problem(error, language)
        asked = show_current(accepted.text, "", find, language)
        waits = say(language, "queued") if model.is_busy() else ""
        return {
            **{question: "", current: asked, stop: gr.update(visible=True)},
            notice: show_notice(waits, language, False),
        }

    def try_example(number: int) -> Callable[..., dict]:
        def take(session: Session, language: str, *numbers: Any) -> dict:
            name, text, find = EXAMPLES[number]
            changed = settled(session, language) if session.show(samples[name]) else {}
            return changed | {picture: samples[name]} | ask_next(session, language, text, find, numbers)

        return take

    def answer(session: Session, language: str) -> Iterator[dict]:
        pending, shown = session.pending, 0.0
        if pending is None:
            yield {notice: gr.skip()}
            return
        try:
            for text in session.answer(model):
                if time.monotonic() - shown >= UPDATE_SECONDS:
                    shown = time.monotonic()
                    yield {current: show_current(pending.text, text, pending.find, language), notice: ""}
            yield settled(session, language)
        except Problem as error:
            yield settled(session, language) | problem(error, language) | {question: pending.text}

    def begin(session: Session, language: str) -> dict:
        session.begin()
        return settled(session, language)

    def switch(session: Session, language: str, name: str) -> Iterator[dict]:
        yield {notice: show_notice(say(language, "loading", name=name), language, False)}
        said: dict = {}
        try:
            if model.switch(name):
                session.begin()
                said = {notice: show_notice(say(language, "loaded", name=name), language, False)}
        except Problem as error:
            said = problem(error, language)
        yield {
            **settled(session, language),
            **said,
            menu: gr.update(value=model.name),
            about: show_about(model.name, language),
        }

    # What a browser sends is taken as it is (preprocess=False): gradio would open a picture before it is checked, and
    # its errors are in no reader's language.
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "preprocess": False}
    slow: dict[str, Any] = quick | {"queue": True, "concurrency_id": "model", "concurrency_limit": 1}
    conversation = [history, current, notice, stop]
    every = [*labels, *values, history, header, examples_label, about, notice]
    given = [session, picture, language, question, *settings]
    with blocks:
        blocks.load(open_page, session, every, **quick)
        language.input(translate, [session, language], every, **quick)
        picture.change(take_picture, [session, picture, language], [*conversation, picture], **quick)
        stop.click(Session.stop, session, None, **quick)
        new.click(begin, [session, language], conversation, **quick)
        menu.input(switch, [session, language, menu], [*conversation, menu, about], **slow)
        steps = [
            gr.on([ask.click, question.submit], accept(False), given, [*conversation, question, picture], **quick),
            find.click(accept(True), given, [*conversation, question, picture], **quick),
        ]
        for number, button in enumerate(examples):
            changed = [*conversation, question, picture]
            steps.append(button.click(try_example(number), [session, language, *settings], changed, **quick))
        for step in steps:
            step.then(answer, [session, language], [*conversation, question], **slow)
    return blocks.queue(api_open=False)


def _path(payload: Any) -> str | None:
    """Where gradio put a file that a browser sent. Raises Problem.

    Gradio looks only at what is marked as a file; any other path would show a visitor all pictures of this machine.
    """
    if not payload:
        return None
    try:
        if Path(payload["path"]).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            return payload["path"]
    except (KeyError, OSError, TypeError, ValueError):
        pass
    raise Problem("error_gone")


class Page:
    """A page that is served; `url` is its address on this machine."""

    def __init__(self, model: SharedModel, port: int | None):
        if port is not None and not 1 <= port <= 65535:
            raise SettingError(f"port is {port!r}; give a whole number from 1 to 65535.")
        self.model = model
        self._folder = tempfile.mkdtemp(prefix="imp-kit-chat-")  # which no other user of this machine can read
        self._before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = self._folder
        atexit.register(self.close)
        self._blocks = build(model, self._folder)
        try:
            with _direct():
                _, self.url, _ = self._blocks.launch(
                    server_name=HOST,
                    server_port=port,
                    share=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    height=900,  # of the frame in a notebook
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    enable_monitoring=False,
                    max_file_size=UPLOAD_BYTES,
                    app_kwargs={"middleware": [Middleware(Guard, folder=self._folder)]},
                    **({} if IS_5 else {**theme_and_css(), "run_history": False, "footer_links": []}),
                )
        except OSError:
            self.close()
            taken = "The ports from 7860 on are" if port is None else f"Port {port} is"
            raise SettingError(f"{taken} used by other programs, or not allowed here; give another port.") from None

    def __repr__(self) -> str:
        return f"<Imp Chat at {self.url}; close() ends it>"

    def wait(self) -> None:
        """Until the process is interrupted."""
        while True:
            time.sleep(1)  # a lock would hold up Ctrl-C on Windows

    def close(self) -> None:
        """End the server, and delete the pictures that were shown to it."""
        atexit.unregister(self.close)
        self._blocks.close(verbose=False)
        if self._before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = self._before
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _direct() -> Iterator[None]:
    """Let no proxy stand between gradio and its own server, which it asks as it starts."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    os.environ.update({name: ",".join(filter(None, [value, HOST])) for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


_page: Page | None = None  # that is open in this process


def serve(checkpoint: Any, *, port: int | None, **loading: Any) -> Page:
    """Serve a page, in place of the one that is open; see `imp_kit.chat_web.launch`."""
    global _page
    if _page:
        _page.close()
        _page = None  # with its model, before another is loaded
    _page = Page(SharedModel(checkpoint, **loading), port)
    return _page
