"""llama.cpp's own server opens an export by itself: prompt, tokens and picture are those of the kit.

Skipped where xllamacpp is not installed, which brings that server as a wheel: pip install xllamacpp.
"""

import pytest
from forms import BUS, FORMS, QUESTION
from forms import write as write_form
from oracle import change_json

import imp_kit
from imp_kit.checkpoints.tokenizer import REPLACEMENT
from imp_kit.images import open_image, squash
from imp_kit.llama_cpp.export import export_gguf
from imp_kit.subjects import OpenAIEndpoint

TOKENS = 16  # later ones may differ by rounding: these weights are random, and often two tokens are close
NAMES = ("imp-v1-3b", "imp-v1.5-2b-qwen1.5", "imp-v1.5-4b-phi3")  # one a family


@pytest.mark.parametrize("name", NAMES)
def test_a_server_answers_as_the_kit(name, tmp_path):
    llama = pytest.importorskip("xllamacpp", reason="llama.cpp's server, for this test alone")
    form = next(form for form in FORMS if form.name == name and form.what.startswith("main"))
    folder = write_form(form, tmp_path / "form")
    change_json(folder, lambda config: config.update(sliding_window=None))
    decoder, tower, *_ = export_gguf(folder, tmp_path / "out", "f32", progress=False)
    params = llama.CommonParams()
    params.model.path, params.mmproj.path = str(decoder), str(tower)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 1, 1
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(params)
    kit = imp_kit.load(folder, device="cpu", dtype="fp32")
    subject = OpenAIEndpoint(f"{server.listening_address}/v1", "imp")
    image = squash(open_image(BUS), kit.model.config.vision.image_size)  # which the server does not resize
    for shown in (image, None):
        texts = [each.ask(shown, QUESTION, max_new_tokens=TOKENS).text for each in (subject, kit)]
        one, two = (text.strip().rstrip(REPLACEMENT) for text in texts)  # a half character at the end
        assert one == two
