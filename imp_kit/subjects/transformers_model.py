"""A vision-language model that transformers itself holds, asked as a checkpoint of the kit is.

Prompts are those of the model's card: by the chat template that comes with it, or for a family that has none, by
PROMPTS. Code that lies beside the weights is never run, and no pickle is read.
"""

import inspect
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from imp_kit.answers import Answer, Seconds
from imp_kit.checkpoints.files import check_weights, file_names, find_tensors, quote, read_json, text_file
from imp_kit.checkpoints.hub import Snapshot, announce, digest, find, hub_errors, list_files, locate
from imp_kit.device import DTYPES, LONG_DTYPES, SMALL_MODEL, bf16_is_faster, choose_device, choose_dtype
from imp_kit.engine import StreamDecoder
from imp_kit.errors import CheckpointError, ImageError, ImpKitError, MemoryLimitError, PromptError, SettingError
from imp_kit.images import check_order, open_image
from imp_kit.model.memory import free_memory, out_of_memory_errors, peak_memory, trim_heap
from imp_kit.prompts import TEMPLATES, check_question
from imp_kit.settings import read_batch_size, read_settings
from imp_kit.system.extras import require

IMAGE = "<image>"
# By model_type: how a family without a chat template is asked about an image, whose place is IMAGE, and about none.
PROMPTS = {
    "blip-2": ("Question: {} Answer:", "Question: {} Answer:"),
    "instructblip": ("{}", "{}"),
    "paligemma": ("<image>answer en {}", "<bos>answer en {}\n"),
    "idefics": ("User: {}<image><end_of_utterance>\nAssistant:", "User: {}<end_of_utterance>\nAssistant:"),
    "llava": ("USER: <image>\n{} ASSISTANT:", "USER: {} ASSISTANT:"),  # its first files held no template
}
ENDS = {"idefics": "<end_of_utterance>"}  # what ends an answer beside the tokens that the files name
TEXT_ALONE = ("blip-2", "instructblip")  # their classes want an image; without one their language model is asked
# Where transformers has no class for all of them (see `_new`), those that the kit asks.
OLDER_CLASSES = {
    "blip-2": "Blip2ForConditionalGeneration",
    "instructblip": "InstructBlipForConditionalGeneration",
    "idefics": "IdeficsForVisionText2Text",
    "llava": "LlavaForConditionalGeneration",
}
# Configuration, templates and tokenizers: neither code nor pickles.
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
# How transformers says which package a processor needs.
PACKAGE = re.compile(r"(?:requires the |Package `)(\w+)")
INDEX = "model.safetensors.index.json"
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks an answer for training; older jinja lacks it


class Transformers:
    """A vision-language model of transformers, for one thread at a time; nothing but greedy answers.

    `model_id` is an id of the hub, whose files are downloaded where they are not in its cache, or a folder. `device`
    and `dtype` are as for `imp_kit.load`; `revision` pins a branch, tag or commit of the hub. `identity` names what can
    change an answer; `place` is what a shell command calls this subject.
    Raises CheckpointError for what transformers does not hold as a vision-language model or what cannot be read,
    SettingError, and MemoryLimitError before weights are downloaded or loaded.
    """

    def __init__(
        self,
        model_id: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
    ):
        require("official", what="A model of transformers")
        import transformers

        trim_heap()  # of a model that was loaded before
        self.device = choose_device(device)
        choose_dtype(dtype, self.device)  # a wrong one is refused before anything is downloaded
        located, from_hub = _locate(model_id, revision)
        self.name, self.revision = located.name, located.revision
        self.family, kind = _find_class(located)
        self.processor = _load_processor(located)
        self.template = _chat_template(self.processor, located.folder)
        if self.template is None and self.family not in PROMPTS:
            raise CheckpointError(
                f"{self.name} comes without a chat template, and the kit does not know how a {self.family} model is "
                "asked. Take a checkpoint of it that was tuned for chats."
            )
        if from_hub:
            _download_weights(located, self.device, dtype)
        tensors = find_tensors(located.folder).values()
        chosen = _fitting_dtype(self.name, sum(math.prod(info.shape) for info in tensors), self.device, dtype)
        self.dtype = LONG_DTYPES[str(chosen).removeprefix("torch.")]
        self.model = _load_model(located, kind, chosen, self.device)
        self._stop_ids = self._set_greedy()
        self.identity = {
            "checkpoint": self.name,
            "revision": self.revision,
            "files": None if self.revision else digest(located.folder, _loaded_files(located.folder)),
            "dtype": self.dtype,
            "device": self.device.type,
            "processor": type(self.processor).__name__,
            "transformers": transformers.__version__,
        }
        self.place = {"subject": f"transformers:{self.name if from_hub else located.folder}"}

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        kind = type(self.model).__name__
        return f"<Transformers {self.name}: {kind}, {count / 1e6:,.1f} M parameters, {self.dtype} on {self.device}>"

    def ask(
        self, image: Any, question: str, max_new_tokens: int = 100, *, stop: str | Sequence[str] | None = None
    ) -> Answer:
        """Answer one question about one image, or about none (None), greedily; settings as for `imp_kit.Imp.ask`.

        The image may be anything that `open_image` takes. Of `seconds`, `look` is the processor's work alone, and the
        vision tower's is in `prefill`. Raises ImageError, PromptError, SettingError or MemoryLimitError.
        """
        limit, stops = _read(max_new_tokens, stop)
        (answer,) = self._answer([self._open((image, question))], limit, stops)
        return answer

    def ask_many(
        self,
        pairs: Iterable[tuple[Any, str]],
        *,
        batch_size: int = 8,
        progress: bool = True,
        max_new_tokens: int = 100,
        stop: str | Sequence[str] | None = None,
    ) -> list[Answer | ImpKitError]:
        """Answer (image, question) pairs, `batch_size` at a time; see `imp_kit.Imp.ask_many`.

        In fp32 the answers are those of `ask`, up to ties that rounding decides. A pair without an answer has its error
        in its place. Raises SettingError.
        """
        limit, stops = _read(max_new_tokens, stop)
        size, pairs, results = read_batch_size(batch_size), list(pairs), []
        with tqdm(total=len(pairs), unit="answer", disable=not progress) as bar:
            for start in range(0, len(pairs), size):
                batch = pairs[start : start + size]
                results += self._answer_batch(batch, limit, stops)
                bar.update(len(batch))
        errors = [result for result in results if isinstance(result, ImpKitError)]
        if errors:
            warnings.warn(f"{len(errors)} of {len(pairs)} have no answer. The first: {errors[0]}", stacklevel=2)
        return results

    def _open(self, pair: Any) -> tuple[Image.Image | None, str]:
        """A pair with its image open. Raises ImageError or PromptError."""
        try:
            image, question = pair
        except (TypeError, ValueError):
            raise PromptError(f"Each item is a pair of a picture and a question, not {pair!r:.80}.") from None
        check_order(image, question)
        check_question(question)
        tokens = [token.content for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special]
        held = [token for token in tokens if token in question]
        if held:
            raise PromptError(f"The question holds {held[0]!r}, a control token of {self.name}; write it another way.")
        return None if image is None else open_image(image), question.strip()

    def _answer_batch(self, pairs: Sequence, limit: int, stops: tuple[str, ...]) -> list[Answer | ImpKitError]:
        """An answer or an error for each pair; those about an image together, and those about none."""
        results: dict[int, Answer | ImpKitError] = {}
        opened = {}
        for row, pair in enumerate(pairs):
            try:
                opened[row] = self._open(pair)
            except ImpKitError as error:
                results[row] = error.bare()
        for alone in (False, True):
            rows = [row for row, (image, _) in opened.items() if (image is None) == alone]
            results |= dict(zip(rows, self._in_parts([opened[row] for row in rows], limit, stops), strict=True))
        return [results[row] for row in range(len(pairs))]

    def _in_parts(self, items: Sequence, limit: int, stops: tuple[str, ...]) -> list[Answer | ImpKitError]:
        """Answers to all items at once, or where that fails, to halves of them: what fails alone costs itself."""
        if not items:
            return []
        try:
            return list(self._answer(items, limit, stops))
        except ImpKitError as error:
            if len(items) == 1:
                return [error.bare()]
        half = len(items) // 2
        return self._in_parts(items[:half], limit, stops) + self._in_parts(items[half:], limit, stops)

    def _answer(self, items: Sequence, limit: int, stops: tuple[str, ...]) -> list[Answer]:
        """Answers to opened items, either all about an image or all about none."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        images = [image for image, _ in items if image is not None]
        prompts = [self._prompt(question, with_image=bool(images)) for _, question in items]
        inputs = self._encode(prompts, images)
        self._check_length(inputs["attention_mask"], limit)
        steps = _Steps([_Reply(StreamDecoder(_Text(self.processor.tokenizer), stops)) for _ in items], self._stop_ids)
        alone = not images and self.family in TEXT_ALONE
        looked = time.perf_counter()
        self._generate(self.model.language_model if alone else self.model, inputs, limit, steps)
        end = time.perf_counter()
        first = steps.first or end
        seconds = [part / len(items) for part in (looked - start, first - looked, end - first)]
        for reply in steps.replies:
            reply.decoder.finish()
        return [
            Answer(
                text=reply.decoder.text,
                token_ids=tuple(reply.decoder.ids),
                prompt=prompt,
                checkpoint=self.name,
                revision=self.revision,
                device=str(self.device),
                dtype=self.dtype,
                finish=reply.finish,
                tokens=reply.tokens,
                seconds=Seconds(*seconds),
                peak_memory=peak_memory(self.device),
            )
            for reply, prompt in zip(steps.replies, prompts, strict=True)
        ]

    def _prompt(self, question: str, *, with_image: bool) -> str:
        """The text that the processor gets, in which a token of its own marks the image's place."""
        if self.template is None:
            return PROMPTS[self.family][0 if with_image else 1].replace("{}", question)
        content = [{"type": "image"}] * with_image + [{"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        writer = self.processor if hasattr(self.processor, "apply_chat_template") else self.processor.tokenizer
        try:
            return writer.apply_chat_template(
                chat, chat_template=self.template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template of somebody else's may raise anything
            raise PromptError(
                f"The chat template of {self.name} does not take this question ({_reason(error)})."
            ) from error

    def _encode(self, prompts: list[str], images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What `generate` takes, on the model's device. Raises ImageError or PromptError."""
        processor, tokenizer = self.processor, self.processor.tokenizer
        given: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        # A template may write the token that the tokenizer begins each text with.
        if tokenizer.bos_token and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            prompts = [prompt.removeprefix(tokenizer.bos_token) for prompt in prompts]
        try:
            if self.family == "idefics":
                parts = [[part for part in re.split(f"({IMAGE})", prompt) if part] for prompt in prompts]
                for row, image in enumerate(images):
                    parts[row][parts[row].index(IMAGE)] = image
                name = "prompts" if "prompts" in inspect.signature(processor.__call__).parameters else "text"
                # It pads by itself; asked to do so, an older one would take the padding for text.
                encoded = processor(**{name: parts}, add_end_of_utterance_token=False, return_tensors="pt")
            elif images:
                # An older transformers takes one list of images; a newer one takes a list for each prompt.
                encoded = processor(text=prompts, images=[[i] for i in images] if _new() else images, **given)
            elif self.template is None or not _new():
                # A PaliGemma reads its prompt in both directions, which its processor says by these.
                encoded = tokenizer(prompts, return_token_type_ids=self.family == "paligemma", **given)
            else:
                encoded = processor(text=prompts, **given)
        except Exception as error:  # a processor of somebody else's may raise anything
            kind, what = (ImageError, "this picture") if images else (PromptError, "this question")
            raise kind(f"The processor of {self.name} does not take {what} ({_reason(error)}).") from error
        floats = self.model.dtype
        return {
            name: value.to(self.device, floats if value.is_floating_point() else value.dtype)
            for name, value in encoded.items()
            if isinstance(value, torch.Tensor) and name != "labels"  # for training
        }

    def _check_length(self, mask: torch.Tensor, limit: int) -> None:
        """Raise PromptError where prompt and answer are longer than the language model reads."""
        config = getattr(self.model.config, "text_config", self.model.config)
        most, length = getattr(config, "max_position_embeddings", None), int(mask.sum(1).max())
        if most and length + limit > most:
            raise PromptError(
                f"The prompt is {length} tokens long, and with max_new_tokens={limit} that is more than {self.name} "
                f"reads ({most}). Ask a shorter question, or for a shorter answer."
            )

    @torch.inference_mode()
    def _generate(self, model: Any, inputs: dict[str, torch.Tensor], limit: int, steps: "_Steps") -> None:
        from transformers import StoppingCriteriaList

        try:
            with out_of_memory_errors("These answers", "ask fewer questions at once (batch_size)"):
                model.generate(
                    **inputs, max_new_tokens=limit, streamer=steps, stopping_criteria=StoppingCriteriaList([steps])
                )
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise PromptError(f"{self.name} fails at this question ({_reason(error)}).") from error

    def _set_greedy(self) -> list[int]:
        """Let `generate` be greedy and nothing else, whatever the model's files prefer; the ids that end an answer."""
        from transformers import GenerationConfig

        tokenizer, inner = self.processor.tokenizer, getattr(self.model, "language_model", None)
        # The BLIP family's language model generates by its own settings.
        models: list[Any] = [model for model in (self.model, inner) if hasattr(model, "generation_config")]
        ends = {tokenizer.eos_token_id, *(id for model in models for id in _ids(model.generation_config.eos_token_id))}
        if self.family in ENDS:
            ends.add(tokenizer.convert_tokens_to_ids(ENDS[self.family]))
        if not all(isinstance(id, int) for id in ends - {None}):
            raise CheckpointError(
                f"{self.name} names a token that ends an answer by no number (generation_config.json)."
            )
        stop_ids = sorted(ends - {None})
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # An encoder has relative positions, which padding between image and question would change.
        encodes = any(model.config.is_encoder_decoder for model in models)
        tokenizer.padding_side = "right" if encodes else "left"
        for model in models:
            own = model.generation_config
            model.generation_config = GenerationConfig(
                do_sample=False,
                num_beams=1,
                eos_token_id=stop_ids,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=own.bos_token_id,
                decoder_start_token_id=own.decoder_start_token_id,
            )
        return stop_ids


class _Reply:
    """One growing answer of a batch."""

    def __init__(self, decoder: StreamDecoder):
        self.decoder, self.tokens, self.finish, self.done = decoder, 0, "length", False

    def take(self, token: int, stop_ids: Sequence[int]) -> None:
        if self.done:  # what follows is padding
            return
        self.tokens += 1
        if token not in stop_ids:
            self.decoder.add(token)
        if token in stop_ids or self.decoder.stopped:
            self.finish, self.done = "stop", True


class _Steps:
    """What `generate` calls a streamer, which gets the prompt and then each step's tokens, and a stopping criterion.

    What `generate` returns begins with the prompt, or not, by model and version; here only new tokens come.
    """

    def __init__(self, replies: list[_Reply], stop_ids: Sequence[int]):
        self.replies, self.stop_ids = replies, stop_ids
        self.first: float | None = None  # when the first token came
        self._begun = False

    def put(self, ids: torch.Tensor) -> None:
        if not self._begun:
            self._begun = True
            return
        self.first = self.first or time.perf_counter()
        for reply, token in zip(self.replies, ids.tolist(), strict=True):
            reply.take(token, self.stop_ids)

    def end(self) -> None:
        """There is nothing to close."""

    def __call__(self, *_: Any, **__: Any) -> bool:
        """Whether all answers have ended, some of them perhaps with a stop string."""
        return all(reply.done for reply in self.replies)


class _Text:
    """A tokenizer of transformers, as a StreamDecoder uses one."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _new() -> bool:
    """Whether this transformers has one class for all vision-language models, as 4.37 has not."""
    import transformers

    return hasattr(transformers, "AutoModelForImageTextToText")


def _read(max_new_tokens: int, stop: Any) -> tuple[int, tuple[str, ...]]:
    sampling, stops = read_settings({"max_new_tokens": max_new_tokens, "stop": stop})
    return sampling.max_new_tokens, stops


def _locate(model_id: str | os.PathLike, revision: str | None) -> tuple[Snapshot, bool]:
    """The model's folder, and whether the hub's client keeps it; then its weights may still be missing.

    Raises CheckpointError.
    """
    located = locate(model_id)
    if isinstance(located, Snapshot):
        return find(model_id, revision), False
    from huggingface_hub import snapshot_download

    with hub_errors(located, revision):
        folder = Path(snapshot_download(located, revision=revision, allow_patterns=list(SETTINGS)))
    return Snapshot(located, folder, folder.name), True


def _find_class(located: Snapshot) -> tuple[str, Any]:
    """The model_type of config.json, and the class of transformers for it. Raises CheckpointError."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = read_json(located.folder / "config.json")
    family, version = str(config.get("model_type")), transformers.__version__
    if family in TEMPLATES:
        raise CheckpointError(
            f"{located.name} is an Imp, which transformers does not hold. It is a checkpoint of the kit: ask "
            "imp_kit.load(...), or in a shell name it without 'transformers:'."
        )
    if family not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise CheckpointError(
                f"{located.name} needs code that lies beside its weights, and the kit runs none of it. Take a "
                "checkpoint of it whose class transformers holds, or serve it elsewhere and ask its address."
            )
        raise CheckpointError(
            f"transformers {version} holds no model of the type {quote(family)}, which {located.name} is. "
            "A newer version may: pip install -U transformers."
        )
    if _new():
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names

        name = names.get(family)
    else:
        name = OLDER_CLASSES.get(family)
    if name is None:
        old = "" if _new() else " that the kit asks with it (a newer one has more)"
        raise CheckpointError(
            f"{located.name} is a {family} model; in transformers {version} that is no vision-language model{old}."
        )
    if (located.folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{located.name} holds adapters (adapter_config.json), for which transformers would fetch another model. "
            "Merge them into that model, save it, and give its folder."
        )
    # Only the tokenizer in a folder of its own is opened by transformers without a word on trust.
    for file in located.folder.glob("*/tokenizer_config.json"):
        if "auto_map" in read_json(file):
            raise CheckpointError(f"{file} names code for its tokenizer, and the kit runs none of it.")
    return family, getattr(transformers, name)


def _download_weights(located: Snapshot, device: torch.device, dtype: str | torch.dtype) -> None:
    """Download what is not in the cache. Raises CheckpointError, and MemoryLimitError before anything comes."""
    from huggingface_hub import snapshot_download

    hub_id, commit = located.name, located.revision
    index = located.folder / INDEX
    names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.exists() else ["model.safetensors"]
    _, sizes = list_files(hub_id, commit)
    if sizes:
        check_weights(hub_id, sizes)
        config = read_json(located.folder / "config.json")
        stored = DTYPES.get(LONG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), ""))
        if stored:
            _fitting_dtype(hub_id, sum(sizes.get(name, 0) for name in names) // stored.itemsize, device, dtype)
        announce(hub_id, commit, {name: sizes[name] for name in names if name in sizes})
    with hub_errors(hub_id, commit):
        snapshot_download(hub_id, revision=commit, allow_patterns=names)


def _fitting_dtype(name: str, parameters: int, device: torch.device, dtype: str | torch.dtype) -> torch.dtype:
    """The dtype in which so many parameters are loaded. Raises MemoryLimitError where they do not fit."""
    free, chosen = free_memory(device), choose_dtype(dtype, device)
    if chosen is None:
        large = parameters > SMALL_MODEL
        chosen = torch.bfloat16 if large and (4 * parameters > free or bf16_is_faster()) else torch.float32
    needed = parameters * chosen.itemsize
    if needed > free:
        smaller = "choose dtype='bf16'" if chosen.itemsize > 2 else "choose a smaller model"
        raise MemoryLimitError(
            f"{name} needs {needed / 1e9:.1f} GB on {device} as {LONG_DTYPES[str(chosen).removeprefix('torch.')]}, but "
            f"{free / 1e9:.1f} GB are free. Close other programs, or {smaller}."
        )
    return chosen


def _load_processor(located: Snapshot) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(located.folder, trust_remote_code=False, local_files_only=True)
    except ImportError as error:
        package = PACKAGE.search(str(error))
        advice = f"pip install {package[1].lower()}" if package else _reason(error)
        raise SettingError(f"The processor of {located.name} needs a package that is missing: {advice}.") from None
    except Exception as error:  # files of somebody else's may make it raise anything
        raise CheckpointError(f"The processor of {located.name} cannot be loaded ({_reason(error)}).") from error
    if not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{located.name} has no processor for pictures and text, only {type(processor).__name__}."
        )
    return processor


def _load_model(located: Snapshot, kind: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The model on its device, every parameter of it from the files. Raises CheckpointError or MemoryLimitError."""
    try:
        with out_of_memory_errors(f"Loading {located.name}"):
            model, report = kind.from_pretrained(
                located.folder,
                **{"dtype" if _new() else "torch_dtype": dtype},
                device_map={"": str(device)},
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except ImpKitError:
        raise
    except Exception as error:  # files of somebody else's may make it raise anything
        raise CheckpointError(f"{located.name} cannot be loaded ({_reason(error)}).") from error
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise CheckpointError(
            f"{located.name} lacks weights that {kind.__name__} has, such as {missing[0]}: its files are not whole, or "
            "for another class."
        )
    return model.eval()


def _chat_template(processor: Any, folder: Path) -> str | None:
    """The model's chat template. Older processors hold none, so there it is read from its file."""
    own = getattr(processor, "chat_template", None)
    if own is not None:
        return own.get("default") if isinstance(own, dict) else own
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file() and isinstance(found := read_json(folder / name).get("chat_template"), str):
            return GENERATION_TAG.sub("", found)
    file = folder / "chat_template.jinja"
    return GENERATION_TAG.sub("", text_file(file).read_text("utf-8")) if file.is_file() else None


def _loaded_files(folder: Path) -> set[str]:
    """The names, relative to the folder, of the files that the model, its processor and its prompts are made from."""
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    shown = {name for name in names if not any(part.startswith(".") for part in Path(name).parts)}
    weights = {name for name in file_names(folder) if name.endswith(".safetensors")}
    return weights | {name for name in shown if any(fnmatch(name, pattern) for pattern in SETTINGS)}


def _ids(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _reason(error: Exception) -> str:
    """The first line of somebody else's error, with its class."""
    text = (str(error).strip() or "no reason told").splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {text[:200]}"
