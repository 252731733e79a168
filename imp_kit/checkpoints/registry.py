"""The published checkpoints as the hub has them: names, files and their contents, as far as public pages show them.

registry.json beside this file is the table. A size is exact where it is a whole number, and known to three digits where
it has a decimal point. What no page shows is `inferred`, from sizes and from the code that trained them.
"""

import json
from dataclasses import dataclass
from importlib import resources

WORKING_BYTES = 1.1e9  # beside the weights


@dataclass(frozen=True)
class Published:
    """A checkpoint on the hub, main branch, November 2026."""

    hub_id: str
    commit: str  # of main, whole or its first digits
    layout: str  # how its tensors are named: "old", "new", "qwen" or "phi3"
    image_size: int  # pixels of a picture's side as the tower gets it
    dtype: str  # of the stored weights, as safetensors writes it
    weight_bytes: int  # of all tensors
    files: dict[str, int | float | None]  # what the kit may need -> bytes, None where no page says
    inferred: list[str]  # files whose content, or being there, no page shows whole
    possible: list[str]  # files that may be there, too
    contents: dict[str, dict]  # the JSON files whose content is known or inferred

    @property
    def needed_bytes(self) -> float:
        """Memory to answer with: of the weights in 16 bits, and for an image and an answer."""
        return self.weight_bytes + WORKING_BYTES

    @property
    def config(self) -> dict:
        """config.json."""
        return self.contents["config.json"]


def _read() -> dict[str, Published]:
    table = json.loads(resources.files("imp_kit.checkpoints").joinpath("registry.json").read_text("utf-8"))
    return {name: Published(**entry) for name, entry in table.items()}


PUBLISHED = _read()
