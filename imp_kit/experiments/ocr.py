"""A reader that is no language model, behind the same `ask`: what the pixels hold, whoever reads them."""

from importlib.metadata import version

import numpy as np

from imp_kit.system.extras import require


class OcrReader:
    """rapidocr (Apache-2.0; PP-OCR's weights are in its wheel), a subject for the reading probe.

    `squash` first makes the picture a square of so many pixels and back again, as a checkpoint with that picture size
    sees it. Without `detect` the whole picture is taken as one line. Raises SettingError where rapidocr is missing.
    """

    def __init__(self, squash: int | None = None, detect: bool = True):
        require("ocr", what="This reader")
        from rapidocr import RapidOCR

        # An engine of its own: options of one call would stay for the next.
        self._engine = RapidOCR(params={"Global.log_level": "error"})
        self._squash, self._detect = squash, detect
        self.identity = {name: version(name) for name in ("rapidocr", "onnxruntime")}
        self.name = "rapidocr" + (f" after {squash} x {squash}" if squash else "") + ("" if detect else ", one line")

    def ask(self, picture, question: str, **_) -> str:
        """The lines of the picture, each quoted, from top to bottom; "" if there are none. The question is not read."""
        if picture is None:
            return ""
        if self._squash:
            picture = picture.resize((self._squash, self._squash)).resize(picture.size)
        # OpenCV, in which it is written, has blue first.
        read = self._engine(np.asarray(picture)[:, :, ::-1], use_det=self._detect, use_cls=False)
        return " ".join(f'"{line}"' for line in read.txts or () if line)
