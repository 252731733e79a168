"""A folder that an export wrote: which files it holds, and whether they belong together."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

from imp_kit.checkpoints.config import MAX_LAYERS
from imp_kit.checkpoints.files import DESCRIPTION, Fields, file_names, quote, read_json
from imp_kit.errors import CheckpointError, SettingError
from imp_kit.llama_cpp.names import ARCHITECTURES
from imp_kit.model.config import DecoderConfig, ImpConfig, VisionConfig

AGAIN = "Export the checkpoint again: python -m imp_kit export gguf."


@dataclass(frozen=True)
class Exported:
    """What DESCRIPTION says of the files beside it; `digest` is that of the checkpoint they were made of."""

    folder: Path
    name: str
    revision: str | None
    digest: str
    config: ImpConfig

    def write(self) -> None:
        """Write DESCRIPTION."""
        found = {"name": self.name, "revision": self.revision, "digest": self.digest, "config": asdict(self.config)}
        (self.folder / DESCRIPTION).write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Exported":
        """What is in a folder. Raises CheckpointError."""
        file = folder / DESCRIPTION
        found = read_json(file)
        try:
            config = dict(found["config"])
            decoder, vision = DecoderConfig(**config["decoder"]), VisionConfig(**config["vision"])
            ends = tuple(config["eos_token_ids"])
            whole = ImpConfig(**{**config, "decoder": decoder, "vision": vision, "eos_token_ids": ends})
            if not all(type(end) is int and 0 <= end < decoder.vocab_size for end in ends):
                raise ValueError(f"eos_token_ids is {ends}")
            name, digest = str(found["name"]), str(found["digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is no description of an export ({quote(str(error))}). {AGAIN}") from None
        for part in (decoder, vision):
            sizes = Fields(asdict(part), str(file))
            for field in fields(part):
                if field.type in (int, float) and field.name != "window_from":
                    most = MAX_LAYERS if field.name.endswith("_layers") else 2**31 - 1
                    sizes.number(field.name, kind=cast(type, field.type), limit=most)
        Fields(asdict(whole), str(file)).expect(tuple(ARCHITECTURES), "family")
        return cls(folder, name, found.get("revision"), digest, whole)

    def types(self) -> dict[str, Path]:
        """The language models that are there: type -> file."""
        names = sorted(name for name in file_names(self.folder) if name.endswith(".gguf"))
        files = [self.folder / name for name in names if not name.startswith("mmproj-")]
        return {file.stem.rpartition("-")[2].lower(): file for file in files}

    def decoder(self, type: str | None) -> Path:
        """The language model in a type; None takes the only one. Raises SettingError or CheckpointError."""
        types = self.types()
        if not types:
            raise CheckpointError(f"{self.folder} holds no language model in GGUF. {AGAIN}")
        if type is None and len(types) == 1:
            (type,) = types
        if type not in list(types):  # also what is no text
            raise SettingError(
                f"quantize is {type!r}, and {self.folder} has {' and '.join(types)}; give one of these as quantize."
            )
        return types[type]

    def tower(self, type: str) -> Path:
        """The tower's file beside a language model of that type. Raises CheckpointError."""
        suffix = "-F32.gguf" if type == "f32" else "-F16.gguf"
        names = sorted(name for name in file_names(self.folder) if name.startswith("mmproj-") and name.endswith(suffix))
        if not names:
            raise CheckpointError(f"{self.folder} holds no tower for pictures, mmproj-...{suffix}. {AGAIN}")
        return self.folder / names[0]

    def check(self, decoder: Path, metadata: Callable[[str], str | None], tower: Path) -> None:
        """Raise CheckpointError for a file of another checkpoint; `metadata` gives the decoder's values."""
        from gguf import GGUFReader

        try:
            field = GGUFReader(tower).get_field("imp_kit.source_sha256")
        except (ValueError, IndexError, OSError) as error:
            raise CheckpointError(f"{tower} is no GGUF file, or a part of one ({error}). {AGAIN}") from None
        for file, digest in ((decoder, metadata("imp_kit.source_sha256")), (tower, field and field.contents())):
            if digest != self.digest:
                raise CheckpointError(
                    f"{file} was not made of {self.name}, the checkpoint that {DESCRIPTION} beside it describes. "
                    f"{AGAIN}"
                )
