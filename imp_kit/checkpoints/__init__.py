"""From a name to filled weights: registry, hub, files, config, plan, load, tokenizer."""

from importlib import import_module
from typing import Any

FROM_HUB = ("DEFAULT", "HUB_IDS", "NANO", "NANO_FOLDER", "Snapshot", "find", "locate")


def __getattr__(name: str) -> Any:
    # Where these names were when this folder was one module; the hub's client is not imported before it is needed.
    if name == "at_hand":  # its earlier name
        name = "is_available"
    if name in (*FROM_HUB, "is_available"):
        return getattr(import_module("imp_kit.checkpoints.hub"), name)
    raise AttributeError(f"module 'imp_kit.checkpoints' has no attribute {name!r}")
