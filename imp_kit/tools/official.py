"""The route of Imp's model card, through transformers and the code on the hub, kept for comparison."""

import os
import re
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from imp_kit.answers import Answer, Seconds
from imp_kit.checkpoints.config import read_family
from imp_kit.checkpoints.files import find_tensors, read_json
from imp_kit.checkpoints.hub import Snapshot, cached, find, hub_errors, locate
from imp_kit.device import LONG_DTYPES, choose_device, choose_dtype
from imp_kit.errors import CheckpointError, ImpKitError, SettingError
from imp_kit.images import open_image
from imp_kit.model.memory import out_of_memory_errors, peak_memory
from imp_kit.model.sampling import Sampling
from imp_kit.prompts import CAPTION, TEMPLATES

OLDEST, NEWEST = (4, 37, 2), (4, 41)
INSTALL = "pip install transformers==4.37.2 accelerate"
COMMIT = re.compile(r"[0-9a-f]{40}")


def load(
    checkpoint: str | os.PathLike,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> "Official":
    """Load a checkpoint with the Python code that lies beside its weights on the hub. That code runs with your rights.

    `checkpoint` is a name, a hub id, or a snapshot folder of a hub cache, whose path contains its commit. `revision` is
    a full commit; code and weights that are not in the hub cache are downloaded. `device` and `dtype` are as for
    `imp_kit.load`, but on a CPU "auto" is always fp32.
    Raises SettingError without `trust_remote_code=True` or with a transformers that Imp's code is not right with,
    CheckpointError where no commit is named or its code does not load, MemoryLimitError.
    """
    if trust_remote_code is not True:
        raise SettingError(
            "This route runs code from the hub on your machine. Read that code, then pass trust_remote_code=True; "
            "imp_kit.load() runs none of it."
        )
    located = _locate_commit(checkpoint, revision)
    try:
        check_version(version("transformers"))
    except PackageNotFoundError:
        raise SettingError(f"This route needs transformers: {INSTALL}") from None
    device = choose_device(device)
    dtype = choose_dtype(dtype, device) or torch.float32
    snapshot = find(checkpoint, revision)
    if isinstance(located, str):
        from huggingface_hub import snapshot_download

        with hub_errors(located, revision):
            snapshot_download(located, revision=revision, allow_patterns=["*.py"])
    return Official(snapshot, device, dtype)


def check_version(installed: str) -> None:
    """Refuse a version of transformers with which Imp's own code fails, or answers wrongly. Raises SettingError."""
    release = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    if release >= OLDEST and release[:2] <= NEWEST:
        return
    why = "parts of transformers that Imp's own code uses are not in it"
    if release < OLDEST:
        why = "Imp's page asks for 4.37.2"
    elif release >= (5,):
        why = "with it, weights or buffers of Imp's own code silently get wrong values"
    raise SettingError(
        f"transformers {installed} is installed; this route is right with 4.37.2 to 4.41 only ({why}). "
        f"{INSTALL}, or use imp_kit.load(), which does without transformers."
    )


def _locate_commit(checkpoint: str | os.PathLike, revision: str | None) -> Snapshot | str:
    """What `locate` gives, if a full commit is named; nothing is downloaded. Raises CheckpointError."""
    located = locate(checkpoint)
    commit = located.revision if isinstance(located, Snapshot) else revision
    if COMMIT.fullmatch(str(commit)):
        return located
    if isinstance(located, Snapshot):
        raise CheckpointError(
            f"{located.folder} is no part of a hub cache, so no commit tells which code it holds. "
            "Give a hub id and revision='COMMIT', or the folder .../snapshots/COMMIT of a hub cache."
        )
    known = "The hub cache holds no whole commit of it; its page on the hub lists the commits and the code."
    if folder := cached(located):
        code = ", ".join(sorted(file.name for file in folder.glob("*.py"))) or "not downloaded yet"
        known = (
            f"The hub cache holds commit {folder.name} of it ({folder}; code: {code}). "
            f"Read the code at that commit, then pass revision={folder.name!r}."
        )
    raise CheckpointError(
        f"{located} with revision={revision!r}: code is run only at a commit that is named in full, 40 digits 0-9 "
        f"and a-f, because what a branch or a short name means can change. {known}"
    )


def _code(snapshot: Snapshot) -> dict[str, str]:
    """The classes that config.json names in its auto_map, each as "module.Class" of this very snapshot.

    "OWNER/NAME--module.Class" would be code of that repository at its newest commit, not at the named one. Where it is
    the checkpoint's own, the same file lies in the snapshot; of any other repository no commit is known.
    """
    auto_map = read_json(snapshot.folder / "config.json").get("auto_map")
    code = {}
    for auto in ("AutoConfig", "AutoModelForCausalLM"):
        reference = auto_map.get(auto) if isinstance(auto_map, dict) else None
        match = re.fullmatch(r"(?:(.+)--)?(\w+)\.(\w+)", str(reference))
        if not match:
            raise CheckpointError(f"{snapshot.name} has no code of its own: its auto_map has {reference!r} for {auto}.")
        owner, module, name = match.groups()
        if owner and owner.lower() != snapshot.name.lower():
            raise CheckpointError(
                f"{snapshot.name} takes {auto} from another repository, {owner}, for which you named no commit."
            )
        if not (snapshot.folder / f"{module}.py").is_file():
            raise CheckpointError(
                f"{snapshot.folder} has no {module}.py: code is not on this machine. Go online once, and load again."
            )
        code[auto] = f"{module}.{name}"
    return code


class Official:
    """A checkpoint with the code of its authors; `ask` and `caption` stand beside those of `imp_kit.Imp`."""

    def __init__(self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype):
        self.snapshot, self.device = snapshot, device
        self.dtype = LONG_DTYPES[str(dtype).removeprefix("torch.")]
        self.template = TEMPLATES[read_family(read_json(snapshot.folder / "config.json"))]
        code = _code(snapshot)
        find_tensors(snapshot.folder)  # refuses pickles and broken files with the kit's own errors
        # The last part of the path becomes a Python module's name. A commit has no dot; a hub id may have one.
        folder = str(snapshot.folder)
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            with out_of_memory_errors(f"Loading {snapshot.name}"), device:
                config = get_class_from_dynamic_module(code["AutoConfig"], folder).from_pretrained(folder)
                config.auto_map = code
                self.model = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    torch_dtype=dtype,
                    device_map={"": str(device)},
                    trust_remote_code=True,
                    use_safetensors=True,
                ).eval()
            # All families use tokenizers of transformers itself, so no tokenizer's code needs trust.
            self.tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        except ImpKitError:
            raise
        except Exception as error:  # the code of others may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"The code of {snapshot.name} at {snapshot.revision} does not load here "
                f"({type(error).__name__}: {reason}). imp_kit.load() does without it."
            ) from error

    def __repr__(self) -> str:
        return f"<Official {self.snapshot.name} at {self.snapshot.revision}: {self.dtype} on {self.device}>"

    def ask(self, picture: Any, question: str, max_new_tokens: int = 100) -> Answer:
        """Answer one question about one picture, greedily, by the calls of the model card.

        A control token in the question is not plain text here. Of `seconds`, `look` is the resizing alone, and the
        tower's work is in `prefill`; spaces in `text` are as transformers tidies them.
        Raises ImageError, PromptError, SettingError or MemoryLimitError.
        """
        prompt = "".join((*self.template.open(), *self.template.ask(question, first=True)))
        limit = Sampling(max_new_tokens).max_new_tokens
        image = open_image(picture)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = _Clock()
        with torch.inference_mode(), out_of_memory_errors("This answer"), self.device:
            start = time.perf_counter()
            images = self.model.image_preprocess(image).to(self.device, self.model.dtype)
            encoded = time.perf_counter()
            input_ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(self.device)
            output = self.model.generate(
                input_ids, images=images, max_new_tokens=limit, use_cache=True, do_sample=False, streamer=clock
            )[0]
            ids = output[input_ids.shape[1] :].tolist()
        end = time.perf_counter()
        first = [*clock.times, end, end][1]  # the prompt comes before it
        eos = self.model.generation_config.eos_token_id
        stopped = bool(ids) and ids[-1] in (eos if isinstance(eos, list) else [eos])
        return Answer(
            text=self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            token_ids=tuple(ids[:-1] if stopped else ids),
            prompt=prompt,
            checkpoint=self.snapshot.name,
            revision=self.snapshot.revision,
            device=str(self.device),
            dtype=self.dtype,
            finish="stop" if stopped else "length",
            tokens=len(ids),
            seconds=Seconds(encoded - start, first - encoded, end - first),
            peak_memory=peak_memory(self.device),
        )

    def caption(self, picture: Any) -> Answer:
        """Describe a picture. Raises as `ask`."""
        return self.ask(picture, CAPTION)


class _Clock:
    """What `generate` calls a streamer; this one only notes when the prompt, then each token, came."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, _ids: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """There is nothing to close."""
