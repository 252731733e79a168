"""Imp Chat: a page in the browser that shows the model a picture and asks. It needs gradio.

>>> import imp_kit
>>> imp_kit.chat_web.launch()
"""

import os
from typing import TYPE_CHECKING

from imp_kit.errors import SettingError
from imp_kit.system.extras import has

if TYPE_CHECKING:
    from imp_kit.chat_web.app import Page


def launch(
    checkpoint: str | os.PathLike | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    port: int | None = None,
) -> "Page":
    """Load a checkpoint as `imp_kit.load` does, and serve a page on this machine alone; a notebook shows it.

    `port` None is the first free one from 7860. One page at a time: another call closes the one before. Raises as
    `imp_kit.load`, and SettingError where gradio is missing or the port is in use.
    """
    if not has("gradio"):
        import huggingface_hub

        # gradio 6 brings a newer huggingface_hub than transformers 4.37 can use.
        package = '"gradio<6"' if huggingface_hub.__version__.startswith("0.") else "gradio"
        raise SettingError(f"Imp Chat needs gradio: pip install {package}.")
    from imp_kit.chat_web.app import serve

    return serve(checkpoint, device=device, dtype=dtype, revision=revision, port=port)
