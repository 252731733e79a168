"""Who is meant by a text of the command line: a checkpoint, a model of transformers, or an endpoint."""

from typing import Any

from imp_kit.errors import SettingError
from imp_kit.subjects.openai_endpoint import OpenAIEndpoint
from imp_kit.subjects.transformers_model import Transformers

TRANSFORMERS = "transformers:"
FORMS = "A server is written http://ADDRESS#MODEL, a model of transformers transformers:ID."


def subject_named(
    text: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    api_key_env: str | None = None,
    concurrency: int = 1,
) -> Any:
    """What an experiment's `run` takes, by its name.

    "transformers:ID" is a vision-language model that transformers itself holds, "http://HOST/v1#MODEL" or the same with
    https an endpoint (see OpenAIEndpoint), and any other text a checkpoint of the kit, which is given back as it is.
    Raises SettingError, also for settings that make no sense for what is named.
    """
    address, _, model = text.partition("#")
    if "://" in text:
        if {device, dtype, revision} != {"auto", None}:
            raise SettingError("An endpoint takes no device, dtype or revision; its server has chosen them.")
        if not model:
            raise SettingError(
                "The endpoint's model is missing; name it after #, as in http://127.0.0.1:8000/v1#MODEL."
            )
        return OpenAIEndpoint(address, model, api_key_env=api_key_env, concurrency=concurrency)
    if api_key_env is not None or concurrency != 1:
        raise SettingError(f"{text!r} is no endpoint, and only an endpoint takes a key or a concurrency.")
    if text.startswith(TRANSFORMERS):
        return Transformers(text.removeprefix(TRANSFORMERS), device=device, dtype=dtype, revision=revision)
    return text
