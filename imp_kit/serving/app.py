"""The routes of the server: OpenAI's chat completions, the list of models, and whether it works."""

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from imp_kit.answers import TokenScore
from imp_kit.checkpoints.tokenizer import REPLACEMENT
from imp_kit.errors import ImpKitError, MemoryLimitError, PromptError
from imp_kit.imp import Imp
from imp_kit.serving.batching import Batcher, Job, QueueFullError, StoppingError
from imp_kit.serving.requests import MAX_BODY_BYTES, ChatRequest, Refusal, read_request, read_turn
from imp_kit.system.loopback import names_this_machine

READ_SECONDS = 60  # for a request's body to arrive
SEND_SECONDS = 60  # for a client to take a part of its answer
READERS = 2  # images that are decoded at once, each of which may need some hundred MB
RETRY_SECONDS = 1


def make_app(imp: Imp, batcher: Batcher, key: str | None = None) -> FastAPI:
    """The application; the batcher is closed with it.

    With a `key` each request for an answer has to bring it. Without one, each has to name this machine by "localhost"
    or a number in its header Host, so that no web page can reach the server by a name of its own.
    """
    readers = ThreadPoolExecutor(READERS, "imp-kit images")
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)
        readers.shutdown()

    # Without the pages that describe it, whose scripts would come from elsewhere.
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.add_middleware(_Gate, key=key)
    for kind in (Refusal, ImpKitError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)
    model = {"id": imp.name, "object": "model", "created": started, "owned_by": "imp-kit"}

    @app.get("/health")
    async def health() -> Response:
        status = "stopping" if batcher.stopping else "ok"
        now = {"status": status, "answering": batcher.running, "waiting": batcher.waiting}
        return JSONResponse(now, 503 if batcher.stopping else 200)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        _check_model(name, imp.name)
        return JSONResponse(model)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _check_kind(request.headers)
        try:
            batcher.enter()
        except ImpKitError:
            await _skip_body(request)
            raise
        job = None
        try:
            body = await _read_body(request)
            loop = asyncio.get_running_loop()
            asked, turn = await loop.run_in_executor(readers, _read, body, imp)
            del body
            events: asyncio.Queue = asyncio.Queue()
            job = Job(turn, asked.sampling, _notifier(loop, events, all=bool(asked.stream)))
            batcher.submit(job)
            return _Reply(_Completion(imp, asked, job), events, lambda: batcher.leave(job))
        except BaseException:
            batcher.leave(job)
            raise

    return app


def _read(body: bytes, imp: Imp) -> tuple[ChatRequest, Any]:
    request = read_request(body)
    _check_model(request.model, imp.name)
    return request, read_turn(request, imp.engine)


def _check_model(name: str, served: str) -> None:
    if name != served:
        raise Refusal(
            404,
            f"There is no model {name[:200]!r} here; this server has {served!r}.",
            param="model",
            code="model_not_found",
        )


def _check_kind(headers: Headers) -> None:
    """A web page can send another kind of body to any server without being asked whether it may."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "The header Content-Type has to be application/json.", code="unsupported_content_type")


async def _read_body(request: Request) -> bytes:
    """The body, of limited size, which has to arrive within a limited time. Raises Refusal."""
    too_large = Refusal(
        413, f"The request has more than {MAX_BODY_BYTES / 1e6:.0f} MB; send a smaller image.", code="request_too_large"
    )
    size = request.headers.get("content-length", "0")
    if size.isdecimal() and int(size) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except ClientDisconnect:
        raise Refusal(400, "The request ended too early.") from None
    except TimeoutError:
        raise Refusal(408, f"The request did not arrive within {READ_SECONDS} seconds.") from None
    return bytes(body)


async def _skip_body(request: Request) -> None:
    """Let a body arrive without keeping it: a client may read no answer before it has sent all."""
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    break


def _notifier(loop: asyncio.AbstractEventLoop, events: asyncio.Queue, all: bool) -> Callable[[Any], None]:
    """What takes a job's events to the loop of the server: `all`, or the last one."""

    def notify(event: Any) -> None:
        if all or not isinstance(event, tuple):
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server was stopped twice
                loop.call_soon_threadsafe(events.put_nowait, event)

    return notify


async def _refuse(_: Request, error: Exception) -> Response:
    refusal = _refusal(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if refusal.status in (429, 503) else {}
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    return JSONResponse(refusal.to_dict(), refusal.status, headers)


def _refusal(error: Exception) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, f"{error.detail}: see /v1/models, /v1/chat/completions and /health.")
    if isinstance(error, QueueFullError):
        return Refusal(429, str(error), code="queue_full")
    if isinstance(error, (StoppingError, MemoryLimitError)):
        return Refusal(503, str(error), code="stopping" if isinstance(error, StoppingError) else "out_of_memory")
    if isinstance(error, PromptError):
        return Refusal(400, str(error), param="messages", code="invalid_prompt")
    if isinstance(error, ImpKitError):
        return Refusal(500, str(error))
    return Refusal(500, "The server made a mistake; its terminal says more.")


class _Gate:
    """Lets a request through that brings the key or, where there is none, names this machine."""

    def __init__(self, app: ASGIApp, key: str | None):
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._check(scope["path"], Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            return await self.app(scope, receive, send)
        await JSONResponse(refusal.to_dict(), refusal.status)(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> Refusal | None:
        if self.key is None:
            host = headers.get("host", "")
            if names_this_machine(host):
                return None
            return Refusal(
                403,
                f"The header Host is {host[:100]!r}. Without a key the server answers to localhost and to numbers "
                "such as 127.0.0.1 only.",
                code="host_not_allowed",
            )
        given = headers.get("authorization", "").encode()
        if path == "/health" or hmac.compare_digest(given, f"Bearer {self.key}".encode()):
            return None
        return Refusal(401, "The key is missing or wrong: send 'Authorization: Bearer KEY'.", code="invalid_api_key")


class _Completion:
    """A request's answer in the words of OpenAI."""

    def __init__(self, imp: Imp, request: ChatRequest, job: Job):
        self.request, self.turn, self._tokenizer = request, job.turn, imp.tokenizer
        self._names = {id: token for token, id in imp.tokenizer.control.items()}
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": imp.name}

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self) -> dict:
        """The answer at its end."""
        message = {"role": "assistant", "content": self.turn.reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.turn.finish}
        choice["logprobs"] = self._logprobs(self.turn.scores())
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def first(self) -> dict:
        """What comes before the first piece."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, scores: Sequence[TokenScore]) -> dict:
        return self._chunk({"content": text}, scores)

    def last(self) -> list[dict]:
        """What comes after the last piece."""
        chunks = [self._chunk({}, finish=self.turn.finish)]
        if self._with_usage:
            chunks.append({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        return chunks

    @property
    def _with_usage(self) -> bool:
        return self.request.stream_options is not None and self.request.stream_options.include_usage

    def _chunk(self, delta: dict, scores: Sequence[TokenScore] = (), finish: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(scores), "finish_reason": finish}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if self._with_usage else chunk

    def _usage(self) -> dict:
        prompt, made = self.turn.prompt_length, self.turn.tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict | None:
        if not self.request.logprobs:
            return None
        content = [
            {**self._entry(each.token, each.log_probability), "top_logprobs": [self._entry(*e) for e in each.likeliest]}
            for each in scores
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, log_probability: float) -> dict:
        """A token as text; one that is a part of a character only has no bytes."""
        text = self._names.get(token) or self._tokenizer.decode([token])
        return {
            "token": text,
            "logprob": log_probability,
            "bytes": None if REPLACEMENT in text else list(text.encode()),
        }


class _Reply(Response):
    """Sends a completion, whole or as server-sent events, while it is made; stops it where the client has gone."""

    def __init__(self, completion: _Completion, events: asyncio.Queue, leave: Callable[[], None]):
        super().__init__()
        self.completion, self.events, self._leave = completion, events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._send(scope, receive, send))
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                with contextlib.suppress(TimeoutError):  # the client takes nothing
                    work.result()
        finally:
            self.leave()  # again, where all went well
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def leave(self) -> None:
        """Give the job's place back, once: before the last of the answer is sent, so that its client can ask again."""
        leave, self._leave = self._leave, lambda: None
        leave()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        event = await self.events.get()  # before the status: what fails at once has an error's
        if not isinstance(event, tuple):
            self.leave()
        if isinstance(event, Exception):
            return await (await _refuse(Request(scope), event))(scope, receive, send)
        if not self.completion.stream:
            return await JSONResponse(self.completion.whole())(scope, receive, send)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._event(send, self.completion.first())
        while isinstance(event, tuple):
            await self._event(send, self.completion.piece(*event))
            event = await self.events.get()
        self.leave()
        if isinstance(event, Exception):
            await self._event(send, _refusal(event).to_dict())
        else:
            for chunk in self.completion.last():
                await self._event(send, chunk)
            await self._event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _event(send: Send, data: dict | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
