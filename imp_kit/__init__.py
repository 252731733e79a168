"""imp-kit: load Imp, show it a picture, ask.

>>> import imp_kit
>>> imp = imp_kit.load()
>>> imp.ask("images/bus.png", "What are the colors of the bus in the image?")
"""

from importlib import import_module

from imp_kit.errors import (
    CheckpointError,
    ImageError,
    ImpKitError,
    MemoryLimitError,
    PromptError,
    RunError,
    SettingError,
)

__version__ = "0.1.0"
ROOMS = ("bench", "doctor", "official")  # modules that a user may call without importing them
__all__ = [
    "Answer",
    "Box",
    "Chat",
    "CheckpointError",
    "ImageError",
    "Imp",
    "ImpKitError",
    "MemoryLimitError",
    "PromptError",
    "RunError",
    "SettingError",
    "View",
    "load",
]


def __getattr__(name: str):
    # The assistant brings torch, seconds of import time; it comes when it is first asked for.
    if name in ROOMS:
        return import_module(f"imp_kit.{name}")
    if name in __all__:
        return getattr(import_module("imp_kit.assistant"), name)
    raise AttributeError(f"module 'imp_kit' has no attribute {name!r}")
