"""Which files of this machine a visitor of Imp Chat can name."""

import pytest

pytest.importorskip("gradio")

from imp_kit.chat_web.app import _path
from imp_kit.chat_web.conversation import Problem


def test_only_what_was_uploaded_is_opened(tmp_path, monkeypatch):
    """Gradio itself does not check a path whose JSON is not marked as a file."""
    folder, own = tmp_path / "uploads", tmp_path / "private.png"
    (folder / "a").mkdir(parents=True)
    for file in (folder / "a" / "bus.png", own):
        file.write_bytes(b"any")
    (folder / "link.png").symlink_to(own)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert _path(None) is None
    assert _path({"path": str(folder / "a" / "bus.png")}) == str(folder / "a" / "bus.png")
    for path in (
        str(own),
        "/dev/zero",
        str(folder / ".." / "private.png"),
        str(folder / "link.png"),
        "a\0b",
        5,
        None,
        "",
    ):
        with pytest.raises(Problem, match="no longer there"):
            _path({"path": path})
    for payload in ("text", [1], {"url": "http://127.0.0.1/"}):
        with pytest.raises(Problem, match="no longer there"):
            _path(payload)
