"""Faces to write with: IPAexGothic for Japanese, of the package matplotlib-fontja, beside matplotlib's own."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from imp_kit.system.extras import has, require


def japanese_face(what: str) -> Path:
    """The file of IPAexGothic. Raises SettingError, which begins with `what`, where its package is missing."""
    require("measure", "matplotlib-fontja", what=what)
    # Found, not imported: importing it would change the face of every later plot.
    spec = find_spec("matplotlib_fontja")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.rglob("ipaexg.ttf")
    return file


@lru_cache(maxsize=1)
def families() -> list[str]:
    """Families of matplotlib that also write Japanese: a letter that the first lacks is taken from the second."""
    from matplotlib.font_manager import fontManager

    if not has("matplotlib_fontja"):
        return ["DejaVu Sans"]
    fontManager.addfont(japanese_face("A plot with Japanese text"))
    return ["DejaVu Sans", "IPAexGothic"]
