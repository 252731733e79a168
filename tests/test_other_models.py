"""What docs/experiments.md says of other models: its code, with a tiny random LLaVA, and an object that only asks."""

import re
from pathlib import Path
from textwrap import dedent

from tiny_models import write

from imp_kit.experiments.captcha import probe

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    section = re.search(r"^## Another model\n(.+?)^## ", PAGE.read_text("utf-8"), re.M | re.S)[1]
    (code,) = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.M)
    folder = write("LLaVA-1.5", tmp_path / "tiny")
    ours = code.replace("llava-hf/llava-1.5-7b-hf", str(folder)).replace('"lesson"', '"smoke"')
    assert ours.count(str(folder)) == ours.count('"smoke"') == 1
    monkeypatch.chdir(tmp_path)
    exec(dedent(ours), {})
    assert (tmp_path / "runs" / "captcha-llava" / "samples.jsonl").read_text().count('"status": "ok"') == 14


def test_any_object_that_asks_runs_through_the_probe(tmp_path):
    class Same:
        def ask(self, picture, question, max_new_tokens=100):
            return "HELLO" if picture else "nothing"

    samples = probe.run(Same(), "smoke", 1, tmp_path / "run")
    assert len(samples) == 14
    assert {sample.exact for sample in samples if sample.code} == {False}
