"""imp-kit: load Imp, show it a picture, ask.

>>> import imp_kit
>>> imp = imp_kit.load()
>>> imp.ask("images/bus.png", "What are the colors of the bus in the image?")
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from imp_kit.errors import (
    CheckpointError,
    EndpointError,
    ImageError,
    ImpKitError,
    MemoryLimitError,
    PromptError,
    RunError,
    SettingError,
)
from imp_kit.moved import MovedModules

if TYPE_CHECKING:
    from imp_kit import chat_web as chat_web
    from imp_kit.finetuning.run import finetune
    from imp_kit.imp import Answer, Box, Candidate, Chat, Imp, View, load
    from imp_kit.samples import sample
    from imp_kit.tools import bench as bench
    from imp_kit.tools import doctor as doctor
    from imp_kit.tools import notebook as notebook
    from imp_kit.tools import official as official

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Box",
    "Candidate",
    "Chat",
    "CheckpointError",
    "EndpointError",
    "ImageError",
    "Imp",
    "ImpKitError",
    "MemoryLimitError",
    "PromptError",
    "RunError",
    "SettingError",
    "View",
    "finetune",
    "load",
    "sample",
]
TOOLS = ("bench", "doctor", "notebook", "official")  # modules that may be called without importing them
if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    # What needs torch, seconds of import time, comes when it is first asked for.
    if name == "chat_web":
        return import_module("imp_kit.chat_web")
    if name in TOOLS:
        return import_module(f"imp_kit.tools.{name}")
    if name == "sample":
        return import_module("imp_kit.samples").sample
    if name == "finetune":
        return import_module("imp_kit.finetuning.run").finetune
    if name in __all__:
        return getattr(import_module("imp_kit.imp"), name)
    raise AttributeError(f"module 'imp_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *TOOLS, "chat_web", "__version__"]
