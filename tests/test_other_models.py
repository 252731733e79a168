"""The adapter of docs/experiments.md: another model as the subject of a probe, shown with a tiny random LLaVA."""

import inspect
import re
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.captcha.codes import draw_code

SIDE, PATCH = 28, 14


def adapter():
    """The class as the page's reader has it."""
    page = Path(__file__).parent.parent / "docs" / "experiments.md"
    (code,) = re.findall(r"```python\n(class Other:.+?)```", page.read_text("utf-8"), re.S)
    space = {}
    exec(code, space)
    return space["Other"]


def tiny_llava():
    """A random LLaVA of transformers' own class, and its processor over imp-nano's tokenizer."""
    # The pinned transformers wants a LLaMA tokenizer by name, whatever is in it.
    wanted = getattr(LlavaProcessor, "tokenizer_class", "AutoTokenizer")
    tokenizer = (LlamaTokenizerFast if "LlamaTokenizerFast" in wanted else PreTrainedTokenizerFast)(
        tokenizer_file=str(NANO_FOLDER / "tokenizer.json"), eos_token="</s>", pad_token="<|endoftext|>"
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    names = inspect.signature(LlavaConfig.__init__).parameters
    token = {"image_token_id" if "image_token_id" in names else "image_token_index": image}
    torch.manual_seed(0)
    parts = {"vision_config": vision, "text_config": text}  # by name: newer versions take nothing else
    config = LlavaConfig(**parts, pad_token_id=tokenizer.pad_token_id, **token)
    model = LlavaForConditionalGeneration(config).eval()
    square = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    # Newer processors put a token for each patch into the prompt themselves.
    new = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    known = inspect.signature(LlavaProcessor.__init__).parameters
    processor = LlavaProcessor(pictures, tokenizer, **{key: value for key, value in new.items() if key in known})
    return model, processor, image


def test_its_answers_are_those_of_generate(tmp_path):
    model, processor, image = tiny_llava()
    other = adapter()("tiny-llava", model, processor)
    picture = draw_code("K7X", seed=1)
    prompt = "USER: <image>\nWhat is written? ASSISTANT:"
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    assert (inputs["input_ids"] == image).any()
    tokens = model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(tokens, skip_special_tokens=True).strip()
    assert other.ask(picture, "What is written?", max_new_tokens=9) == expected != ""
    assert other.ask(None, "What is written?", max_new_tokens=9) != expected


def test_it_runs_through_the_probe(tmp_path):
    model, processor, _ = tiny_llava()
    samples = reading.run(adapter()("tiny-llava", model, processor), "smoke", 1, tmp_path / "run")
    assert len(samples) == 14
    assert {sample.exact for sample in samples if sample.code} == {False}
