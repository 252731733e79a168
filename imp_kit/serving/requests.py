"""What a chat request may hold, and the turn of a conversation with Imp that it asks for."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from imp_kit.engine import Conversation, Engine, Turn
from imp_kit.errors import ImageError, ImageSizeError, PromptError, PromptLengthError
from imp_kit.images import open_image, squash
from imp_kit.model.sampling import Sampling

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 25_000_000
MAX_IMAGE_SIDE = 65_535  # of a JPEG; PIL's resampling of a line of 25 million pixels would need 800 MB
MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 1_000_000  # base64 has four letters for three bytes; the rest is for text
# Kinds of files that PIL reads by itself. A PostScript file, say, would start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)

NO_EFFECT = {
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
}
# Parameters that this server does not have, and the values that ask for nothing.
NEUTRAL: dict[str, tuple] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(Exception):
    """Why a request gets no answer: a status of HTTP, and OpenAI's words for it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_dict(self) -> dict:
        """As OpenAI writes an error in JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class ImageUrl(_Strict):
    url: str


class Part(_Strict):
    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    role: str
    content: Annotated[list[Part] | None, BeforeValidator(_as_parts)] = None


class StreamOptions(_Strict):
    include_usage: bool = False


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ChatRequest(_Strict):
    """The body of a request for a chat completion. What is left out is as in `Imp.ask`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None, BeforeValidator(_as_list)
    ] = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def sampling(self) -> Sampling:
        asked: dict[str, Any] = {
            "max_new_tokens": self.max_tokens or self.max_completion_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        return Sampling(**{name: value for name, value in asked.items() if value is not None})


def read_request(body: bytes) -> ChatRequest:
    """The request that a body of JSON holds. Raises Refusal for what is none, or asks for what is not supported."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as errors:
        error = errors.errors(include_url=False, include_input=False)[0]
        param, reason = _path(error["loc"]), error["msg"].rstrip(".").replace(" after validation", "")
        raise Refusal(400, f"{param or 'The body'}: {reason}.", param=param, code=error["type"]) from None
    for name, value in (request.model_extra or {}).items():
        if value is not None and name not in NO_EFFECT and value not in NEUTRAL.get(name, ()):
            raise _unsupported(name, f"This server does not support {name[:80]!r}; leave it out.")
    if request.n not in (None, 1):
        raise _unsupported("n", f"n is {request.n}; this server gives one answer to a request.")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise Refusal(400, "max_tokens and max_completion_tokens differ; give one of them.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise Refusal(400, "top_logprobs is given without logprobs; set logprobs to true.", param="top_logprobs")
    return request


def read_turn(request: ChatRequest, engine: Engine) -> Turn:
    """The turn that a request asks for, with the turns before it and the image. Raises Refusal.

    The image is kept as the square that the model sees, 0.4 MB at 384 x 384 pixels, whatever came.
    """
    texts, image = _read_messages(request.messages)
    config = engine.model.config
    seen = None if image is None else _open(*image, config.vision.image_size, config.pad)
    conversation, where = Conversation(engine, seen), "messages"
    try:
        for number in range(0, len(texts) - 1, 2):
            where = f"messages[{number}]"
            conversation.add(texts[number], texts[number + 1])
        where = f"messages[{len(texts) - 1}]"
        turn = conversation.ask(texts[-1], tuple(request.stop or ()))
    except PromptError as error:
        code = "context_length_exceeded" if isinstance(error, PromptLengthError) else "invalid_prompt"
        raise Refusal(400, str(error), param=where, code=code) from None
    if request.logprobs:
        turn.likeliest = request.top_logprobs or 0
    return turn


def _read_messages(messages: Sequence[Message]) -> tuple[list[str], tuple[str, str] | None]:
    """The texts of a user and an assistant who take turns; the image's address and its parameter, if there is one."""
    texts: list[str] = []
    image = None
    for number, message in enumerate(messages):
        where, wanted = f"messages[{number}]", "user" if number % 2 == 0 else "assistant"
        if message.role in ("system", "developer"):
            raise _unsupported(
                f"{where}.role",
                f"A message of the role {message.role!r} is not supported: Imp was trained with one system prompt, "
                "which stands in every prompt. Write your instruction into the user's message.",
            )
        if message.role not in ("user", "assistant"):
            raise _unsupported(
                f"{where}.role", f"The role {message.role[:40]!r} is not supported; use 'user' and 'assistant'."
            )
        if message.role != wanted:
            raise Refusal(
                400,
                f"The role is {message.role!r} where {wanted!r} is expected: the messages of 'user' and 'assistant' "
                "take turns, beginning with 'user'.",
                param=f"{where}.role",
            )
        for name, value in (message.model_extra or {}).items():
            if value and name in ("tool_calls", "function_call", "audio"):
                raise _unsupported(f"{where}.{name}", f"This server does not support {name!r} in a message.")
        text = []
        for place, part in enumerate(message.content or ()):
            param = f"{where}.content[{place}]"
            if part.type == "text" and part.text is not None:
                text.append(part.text)
            elif part.type == "image_url" and part.image_url is not None:
                if number or image:
                    why = "a second image" if image else "an image in a later message"
                    raise _unsupported(
                        param, f"There is {why}: Imp sees one image, which belongs into the first message."
                    )
                image = part.image_url.url, f"{param}.image_url.url"
            elif part.type in ("text", "image_url"):
                raise Refusal(400, f"{param} has no {part.type}.", param=f"{param}.{part.type}")
            else:
                raise _unsupported(
                    f"{param}.type", f"A part of the type {part.type[:40]!r} is not supported; use text and image_url."
                )
        texts.append("\n".join(text))
    if len(texts) % 2 == 0:
        raise Refusal(400, "The last message is the assistant's; end with a question of the user.", param="messages")
    return texts, image


def _open(url: str, param: str, size: int, pad: bool) -> Image.Image:
    """An image of a data URL as a square of `size` pixels; see `squash`. Raises Refusal."""
    match = DATA_URL.match(url)
    if not match:
        raise Refusal(
            400,
            f"The image's address begins with {url[:16]!r}. This server fetches nothing: send the image itself, as "
            "data:image/png;base64,... or the same with jpeg or webp.",
            param=param,
            code="invalid_image_url",
        )
    try:
        content = base64.b64decode(url[match.end() :], validate=True)
        if len(content) > MAX_IMAGE_BYTES:
            raise _too_large(f"The image has more than {MAX_IMAGE_BYTES / 1e6:.0f} MB; shrink it first.", param)
        image = open_image(content, max_pixels=MAX_IMAGE_PIXELS, formats=FORMATS)
        if max(image.size) > MAX_IMAGE_SIDE:
            raise _too_large(f"The image has a side of more than {MAX_IMAGE_SIDE:,} pixels; shrink it first.", param)
        return squash(image, size, pad)
    except (binascii.Error, ValueError):  # the latter for letters that are no ASCII
        raise Refusal(400, "The image is no valid base64.", param=param, code="invalid_base64") from None
    except ImageSizeError as error:
        raise _too_large(f"The image cannot be read. {error}.", param) from None
    except ImageError as error:
        raise Refusal(400, f"The image cannot be read. {error}.", param=param, code="invalid_image") from None


def _unsupported(param: str, message: str) -> Refusal:
    return Refusal(400, message, param=param, code="unsupported_parameter")


def _too_large(message: str, param: str | None) -> Refusal:
    return Refusal(413, message, param=param, code="image_too_large")


def _path(location: Sequence[int | str]) -> str | None:
    """Where an error is, such as messages[0].content[1].type."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.removeprefix(".") or None
