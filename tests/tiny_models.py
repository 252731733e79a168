"""Tiny random vision-language models of transformers' own classes, as folders that their save_pretrained wrote.

Each family names a model whose card says how it wants a question asked, and that prompt. The chat templates are short
ones of our own that write the same for one question.
"""

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, processors

NEW = hasattr(transformers, "AutoModelForImageTextToText")
SIDE, PATCH, QUERIES = 28, 14, 4
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": SIDE, "patch_size": PATCH}
ROWS = SIDE // PATCH
LETTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
ENDS = "aeos.,"  # letters that end an answer, so that some answers of a batch end early
QUESTION = "What is written?"


@dataclass(frozen=True)
class Family:
    """`build` gives a model and a processor; `card` is the model whose card gives the prompts for QUESTION."""

    build: Callable[[], tuple]
    needs: str  # a class of transformers
    card: str
    prompt: str
    alone: str
    template: str | None = None
    seed: int = 0  # one whose answers differ between images
    torchvision: bool = False  # transformers' processor of videos, which is a part, needs it


def tokenizer_of(*special: str, bos: str | None = None, **named: str):
    """One token a letter, and the special ones. With `bos`, each text begins with it, as a LLaMA tokenizer has it."""
    special = (*special, *named.values())
    more = {"extra_special_tokens": named} if named else {"additional_special_tokens": list(special)}
    names = ["<unk>", "<s>", "</s>", "<pad>", *special]
    core = Tokenizer(models.BPE({token: id for id, token in enumerate([*names, *LETTERS])}, [], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(names)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            f"{bos} $A", f"{bos} $A {bos} $B", [(bos, names.index(bos))]
        )
    # The pinned transformers wants a LLaMA tokenizer by name in a LLaVA, whatever is in it.
    kind = transformers.PreTrainedTokenizerFast if NEW or not bos else transformers.LlamaTokenizerFast
    return kind(
        tokenizer_object=core, bos_token=bos, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"], **more,
    )  # fmt: skip


def image_processor(name: str, **settings):
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**settings)


def clip_images(name: str = "CLIPImageProcessor", **more):
    return image_processor(name, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **more)


def square_images(name: str, **more):
    return image_processor(name, size={"height": SIDE, "width": SIDE}, **more)


def llama(tokenizer, kind: str = "LlamaConfig", **more):
    return getattr(transformers, kind)(
        **TEXT, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=3, **more
    )


def randomized(model):
    """Every parameter random, and wide enough that answers differ between images."""
    for parameter in model.parameters():
        spread = torch.randn_like(parameter)
        parameter.data = spread * parameter.shape[-1] ** -0.5 * 2.5 if parameter.ndim > 1 else parameter + spread * 0.2
    return model.eval()


def llava():
    tokenizer = tokenizer_of("<image>", bos="<s>")
    token = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    parts = {"vision_config": transformers.CLIPVisionConfig(**VISION), "text_config": llama(tokenizer)}
    config = transformers.LlavaConfig(**parts, pad_token_id=3, **token)
    new = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = transformers.LlavaProcessor(clip_images(), tokenizer, **(new if NEW else {}))
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_next():
    tokenizer = tokenizer_of("<image>", bos="<s>")
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=llama(tokenizer, "MistralConfig", num_key_value_heads=1),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_grid_pinpoints=grid,
    )  # fmt: skip
    processor = transformers.LlavaNextProcessor(
        clip_images("LlavaNextImageProcessor", image_grid_pinpoints=grid), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    tokenizer = tokenizer_of("<image>", "<video>", "<|im_start|>", "<|im_end|>")
    grid = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=llama(tokenizer, "Qwen2Config", num_key_value_heads=1),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), image_grid_pinpoints=grid,
    )  # fmt: skip
    processor = transformers.LlavaOnevisionProcessor(
        square_images("LlavaOnevisionImageProcessor", image_grid_pinpoints=grid), tokenizer,
        transformers.LlavaOnevisionVideoProcessor(), num_image_tokens=ROWS**2, vision_feature_select_strategy="full",
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def blip(kind: str, text_config, processor, **qformer):
    parts = {
        "vision_config": VISION,
        "qformer_config": {**TEXT, "encoder_hidden_size": TEXT["hidden_size"], "vocab_size": 150, **qformer},
        "text_config": {**text_config.to_dict(), "architectures": [type(text_config).__name__]},  # the pin reads it
        "num_query_tokens": QUERIES,
    }
    if NEW:
        parts["image_token_index"] = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = getattr(transformers, f"{kind}Config")(**parts)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def blip2_processor(tokenizer):
    more = {"num_query_tokens": QUERIES} if NEW else {}
    return transformers.Blip2Processor(square_images("BlipImageProcessor"), tokenizer, **more)


def blip2():
    processor = blip2_processor(tokenizer_of("<image>"))
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.OPTConfig(
        **sizes, word_embed_proj_dim=32, vocab_size=len(processor.tokenizer), max_position_embeddings=512,
        bos_token_id=2, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    return blip("Blip2", text, processor)


def blip2_t5():
    processor = blip2_processor(tokenizer_of("<image>"))
    text = transformers.T5Config(
        d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=len(processor.tokenizer),
        decoder_start_token_id=3, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    return blip("Blip2", text, processor)


def instructblip():
    more = {"num_query_tokens": QUERIES} if NEW else {}
    processor = transformers.InstructBlipProcessor(
        square_images("BlipImageProcessor"), tokenizer_of("<image>", bos="<s>"), tokenizer_of("[SEP]"), **more
    )
    return blip("InstructBlip", llama(processor.tokenizer), processor)


def idefics():
    tokenizer = tokenizer_of("<image>", "<fake_token_around_image>", "<end_of_utterance>", bos="<s>")
    words = {"additional_vocab_size": 0, "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    vision = {"embed_dim": 32, "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 2}
    config = transformers.IdeficsConfig(
        **TEXT, **words, pad_token_id=3, cross_layer_interval=1, use_resampler=False,
        vision_config={**vision, "num_attention_heads": 2, "intermediate_size": 48},
    )  # fmt: skip
    images = image_processor("IdeficsImageProcessor", image_size=SIDE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return transformers.IdeficsForVisionText2Text(config), transformers.IdeficsProcessor(images, tokenizer)


def idefics2():
    tokenizer = tokenizer_of("<image>", "<fake_token_around_image>", "<end_of_utterance>", bos="<s>")
    processor = transformers.Idefics2Processor(
        image_processor("Idefics2ImageProcessor", size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE},
                        do_image_splitting=False),
        tokenizer, image_seq_len=QUERIES,
    )  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config={**VISION, "image_size": 2 * SIDE},
        perceiver_config={"hidden_size": 32, "resampler_n_latents": QUERIES, "resampler_depth": 1,
                          "resampler_n_heads": 2, "resampler_head_dim": 16, "num_key_value_heads": 1},
        text_config=llama(tokenizer, "MistralConfig", num_key_value_heads=1),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.Idefics2ForConditionalGeneration(config), processor


def idefics3():
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = tokenizer_of(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|im_start|>", *marks
    )
    images = image_processor(
        "Idefics3ImageProcessor", size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=1)
    config = transformers.Idefics3Config(
        vision_config=VISION, text_config=llama(tokenizer), scale_factor=ROWS,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.Idefics3ForConditionalGeneration(config), processor


QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen(version: str, vision: dict):
    tokenizer = tokenizer_of(*QWEN)
    ids = {"vision_start": 4, "vision_end": 5, "image": 6, "video": 7}
    for name, token in zip(ids, QWEN[2:], strict=True):
        ids[name] = tokenizer.convert_tokens_to_ids(token)
    text = {
        **TEXT, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, **vision}
    config = getattr(transformers, f"{version}Config")(
        text_config=text, vision_config=vision, **{f"{name}_token_id": id for name, id in ids.items()}
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    processor = getattr(transformers, f"{version}Processor")(
        image_processor("Qwen2VLImageProcessor", size=size), tokenizer, transformers.Qwen2VLVideoProcessor()
    )
    return getattr(transformers, f"{version}ForConditionalGeneration")(config), processor


def qwen2():
    return qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2})


def qwen2_5():
    return qwen("Qwen2_5_VL", {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48,
                               "fullatt_block_indexes": [1]})  # fmt: skip


def internvl():
    tokenizer = tokenizer_of(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>", begin="<|im_start|>", end="<|im_end|>",
    )  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config=llama(tokenizer, "Qwen2Config", num_key_value_heads=1), downsample_ratio=0.5,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=1,
    )  # fmt: skip
    images = square_images("GotOcr2ImageProcessor", crop_to_patches=True, max_patches=3)
    processor = transformers.InternVLProcessor(
        images, tokenizer, transformers.InternVLVideoProcessor(), image_seq_length=1
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def paligemma():
    tokenizer = tokenizer_of("<bos>", "<image>")
    tokenizer.bos_token = "<bos>"
    processor = transformers.PaliGemmaProcessor(
        square_images("SiglipImageProcessor", image_seq_length=ROWS**2), tokenizer
    )
    text = llama(tokenizer, "GemmaConfig", num_key_value_heads=1, head_dim=16)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False),
        text_config=text, projection_dim=32, hidden_size=32,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def template(user: str, end: str, image: str, *, begin: str = "", assistant: str = "") -> str:
    """A chat template for turns of the user alone: `image` for each image, then the text."""
    return (
        f"{{{{ {begin!r} }}}}{{% for message in messages %}}{{{{ {user!r} }}}}{{% for part in message['content'] %}}"
        f"{{% if part['type'] == 'image' %}}{{{{ {image!r} }}}}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        f"{{% endfor %}}{{{{ {end!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant!r} }}}}{{% endif %}}"
    )


CHATML = {
    "begin": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n",
}
SIGHT = "<|vision_start|><|image_pad|><|vision_end|>"
UTTERANCE = (
    "{% for message in messages %}User:{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}What is written?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QWEN_TEMPLATE = template("<|im_start|>user\n", "<|im_end|>\n", SIGHT, **CHATML)
FAMILIES = {
    "LLaVA-1.5": Family(
        llava,
        "LlavaForConditionalGeneration",
        "llava-hf/llava-1.5-7b-hf",
        "USER: <image>\nWhat is written? ASSISTANT:",
        "USER: What is written? ASSISTANT:",
        # With the tags that jinja has to know, as the card's has them.
        template("USER: ", " ", "<image>\n", assistant="ASSISTANT:")
        + "{% if false %}{% generation %}{% endgeneration %}{% endif %}",
    ),
    "LLaVA-1.5, first files": Family(
        llava,
        "LlavaForConditionalGeneration",
        "llava-hf/llava-1.5-7b-hf",
        "USER: <image>\nWhat is written? ASSISTANT:",
        "USER: What is written? ASSISTANT:",
    ),
    "LLaVA-NeXT": Family(
        llava_next,
        "LlavaNextForConditionalGeneration",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "[INST] <image>\nWhat is written? [/INST]",
        "[INST] What is written? [/INST]",
        template("[INST] ", " [/INST]", "<image>\n"),
    ),
    "LLaVA-OneVision": Family(
        llava_onevision,
        "LlavaOnevisionForConditionalGeneration",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "<|im_start|>user <image>\nWhat is written?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user \nWhat is written?<|im_end|><|im_start|>assistant\n",
        "{% for message in messages %}<|im_start|>user {% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else '\\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        torchvision=True,
    ),
    "BLIP-2, OPT": Family(
        blip2,
        "Blip2ForConditionalGeneration",
        "Salesforce/blip2-opt-2.7b",
        "Question: What is written? Answer:",
        "Question: What is written? Answer:",
        seed=10,
    ),
    "BLIP-2, T5": Family(
        blip2_t5,
        "Blip2ForConditionalGeneration",
        "Salesforce/blip2-flan-t5-xl",
        "Question: What is written? Answer:",
        "Question: What is written? Answer:",
        seed=11,
    ),
    "InstructBLIP": Family(
        instructblip,
        "InstructBlipForConditionalGeneration",
        "Salesforce/instructblip-vicuna-7b",
        "What is written?",
        "What is written?",
    ),
    "Idefics": Family(
        idefics,
        "IdeficsForVisionText2Text",
        "HuggingFaceM4/idefics-9b-instruct",
        "User: What is written?<image><end_of_utterance>\nAssistant:",
        "User: What is written?<end_of_utterance>\nAssistant:",
        seed=4,
    ),
    "Idefics2": Family(
        idefics2,
        "Idefics2ForConditionalGeneration",
        "HuggingFaceM4/idefics2-8b",
        "User:<image>What is written?<end_of_utterance>\nAssistant:",
        "User: What is written?<end_of_utterance>\nAssistant:",
        UTTERANCE,
    ),
    "Idefics3, SmolVLM": Family(
        idefics3,
        "Idefics3ForConditionalGeneration",
        "HuggingFaceTB/SmolVLM-Instruct",
        "<|im_start|>User:<image>What is written?<end_of_utterance>\nAssistant:",
        "<|im_start|>User: What is written?<end_of_utterance>\nAssistant:",
        "<|im_start|>" + UTTERANCE,
        seed=1,
    ),
    "Qwen2-VL": Family(
        qwen2,
        "Qwen2VLForConditionalGeneration",
        "Qwen/Qwen2-VL-2B-Instruct",
        QWEN_PROMPT.format(SIGHT),
        QWEN_PROMPT.format(""),
        QWEN_TEMPLATE,
        seed=4,
        torchvision=True,
    ),
    "Qwen2.5-VL": Family(
        qwen2_5,
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        QWEN_PROMPT.format(SIGHT),
        QWEN_PROMPT.format(""),
        QWEN_TEMPLATE,
        seed=6,
        torchvision=True,
    ),
    "InternVL": Family(
        internvl,
        "InternVLForConditionalGeneration",
        "OpenGVLab/InternVL3-1B-hf",
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is written?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWhat is written?<|im_end|>\n<|im_start|>assistant\n",
        template("<|im_start|>user\n", "<|im_end|>\n", "<IMG_CONTEXT>\n", assistant="<|im_start|>assistant\n"),
        torchvision=True,
    ),
    "PaliGemma": Family(
        paligemma,
        "PaliGemmaForConditionalGeneration",
        "google/paligemma-3b-mix-224",
        "<image>answer en What is written?",
        "<bos>answer en What is written?\n",
        seed=9,
    ),
}


def write(name: str, folder: Path) -> Path:
    """A family's checkpoint, whose generation_config asks for all that is not greedy."""
    family = FAMILIES[name]
    torch.manual_seed(family.seed)
    model, processor = family.build()
    randomized(model).save_pretrained(folder)  # as safetensors, in either version
    processor.save_pretrained(folder)
    if family.template:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": family.template}))
    ends = [2, *processor.tokenizer.convert_tokens_to_ids(list(ENDS))]
    own = {"do_sample": True, "temperature": 0.1, "top_p": 0.5, "repetition_penalty": 5.0, "num_beams": 2}
    own |= {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 3, "max_length": 9}
    if name == "BLIP-2, T5":
        own["decoder_start_token_id"] = 3
    (folder / "generation_config.json").write_text(json.dumps(own))
    return folder
