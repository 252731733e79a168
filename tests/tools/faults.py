"""Deliberate faults, and the tests that have to catch each: `python tests/tools/faults.py [--fast] [NAME ...]`.

A copy of the repository gets one fault at a time, and the tests named beside it run there; with --fast only those that
are not marked slow. Prints a table as Markdown; the exit status is 1 where a fault is not caught. The tests in
test_faults.py keep the table from ageing: each text to replace stands in its file once, each test is there.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
PRELOADED = ("torch", "transformers", "scipy.stats", "matplotlib.figure")  # not the kit, which changes
FAILED = re.compile(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", re.M)


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in `file` (a path in imp_kit), becomes `new`; `tests` (paths in tests) have to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    """A row of the table; each test is "FILE::TEST" without "test_" and ".py"."""
    paths = (f"test_{module}.py::test_{test}" for module, test in (each.split("::") for each in tests))
    return Fault(name, f"imp_kit/{file}", old, new, tuple(paths))


LOGITS, TOKENS = "parity::same_logits", "parity::same_greedy_tokens"
ROWS = "parity::a_stop_id_ends_its_row_only"
SCORED = "japanese::answers_are_scored_as_a_reader_of_japanese_judges_them"
RANKED = "rank::likelihoods_are_those_of_transformers"
BATCH, RANDOM = "batches::many_answers_equal_those_of_ask", "fast::random_requests"

NETWORK = (
    fault("rotary angles alternate", "model/decoder.py", "torch.cat((cos, cos), dim=-1)",
          "cos.repeat_interleave(2, -1)", LOGITS),
    fault("neighbours rotated instead of halves", "model/decoder.py", "turning.roll(width // 2, dims=-1)",
          "turning.roll(1, dims=-1)", LOGITS),
    fault("rotary base fixed", "model/decoder.py", "config.rope_theta**-steps", "10000.0**-steps", LOGITS),
    fault("attention without its scale", "model/decoder.py", "enable_gqa=keys < queries)",
          "enable_gqa=keys < queries, scale=1.0)", LOGITS),
    fault("mask aligned at the upper left", "model/decoder.py", "queries = torch.arange(start, start + count,",
          "queries = torch.arange(0, count,", "parity::a_prompt_in_parts_is_the_prompt_at_once"),
    fault("position after padding off by one", "model/decoder.py", "positions - self.counts[:, None])",
          "positions - self.counts[:, None] + 1)", RANDOM, BATCH),
    fault("padding not masked", "model/decoder.py", "mask & ~padding.hides(keys) |", "mask |", LOGITS),
    fault("window one too long", "model/decoder.py", "> queries[..., :, None] - window",
          ">= queries[..., :, None] - window", LOGITS),
    fault("window from one layer later", "model/decoder.py", "index >= self.config.window_from",
          "index > self.config.window_from", LOGITS),
    fault("norm's eps fixed", "model/decoder.py", "eps=config.eps)", "eps=1e-5)", LOGITS),
    fault("exact GELU", "model/packed_linear.py", 'F.gelu(x, approximate="tanh")', "F.gelu(x)", LOGITS),
    fault("GELU in the gate", "model/decoder.py", "F.silu(gate)", "F.gelu(gate)", LOGITS),
    fault("no second norm before the MLP", "model/decoder.py", "h if self.mlp_norm is None else", "h if True else",
          LOGITS),
    fault("no bias in q, k, v", "model/config.py", '"imp": {"gated": False, "qkv_bias": True}',
          '"imp": {"gated": False, "qkv_bias": False}', LOGITS),
    fault("keys and values swapped", "model/decoder.py", "k, v = kv", "v, k = kv", LOGITS),
    fault("a cache's memory shared with two", "model/decoder.py", "max(other.length, other.end) <= self.length for",
          "True for", "parity::a_branch_leaves_the_original_as_it_was",
          "assistant::two_streams_of_one_view_do_not_disturb_each_other"),
    fault("cache not truncated", "model/decoder.py", "self.end = min(self.length, length)", "self.end = self.length",
          "assistant::a_chat_equals_reading_the_whole_prompt"),
    fault("patches column by column", "model/vision.py", '"b d h w -> b (h w) d"', '"b d h w -> b (w h) d"',
          "parity::same_tower_features"),
    fault("one more layer of the tower", "checkpoints/config.py", "used = layers + 1 + select",
          "used = layers + 2 + select", "parity::same_tower_features"),
    fault("a norm behind the tower", "model/imp.py", "self.vision(pixels.to(self.device, self.dtype))",
          "nn.functional.layer_norm(self.vision(pixels), (self.config.vision.hidden_size,))", LOGITS),
    fault("tower's eps fixed", "checkpoints/config.py", 'eps=read.number("layer_norm_eps", default=1e-6, kind=float)',
          "eps=1e-6", "parity::same_tower_features"),
    fault("tanh GELU in the projector", "model/imp.py", "nn.GELU()", 'nn.GELU(approximate="tanh")', LOGITS),
    fault("prompt's parts in reverse", "model/imp.py", "torch.cat(parts)", "torch.cat(parts[::-1])", LOGITS),
    fault("picture tokens miscounted", "model/config.py", "(self.image_size // self.patch_size)",
          "(self.image_size // self.patch_size + 1)", "parity::same_tower_features"),
    fault("a graph's step sees no key of its own", "model/cuda_graph.py", "(self.keys <= self.position)",
          "(self.keys < self.position)", "fast::a_step_at_fixed_addresses_is_the_plain_step"),
    fault("8 bits cut off instead of rounded", "model/packed_linear.py", "scale[part, None]).round()",
          "scale[part, None])", "fast::eight_bits_give_nearly_the_same_products"),
    fault("a container's file cache counts as used", "model/memory.py", "int(limit) - int(used) + files",
          "int(limit) - int(used)", "assistant::the_file_cache_of_a_container_counts_as_free"),
)  # fmt: skip
GENERATION = (
    fault("one token too many", "model/generate.py", "made == most or", "made > most or",
          "parity::as_many_tokens_as_asked_for"),
    fault("rows that stay are the first", "model/generate.py", "rows = [rows[row] for row in left]",
          "rows = rows[: len(left)]", ROWS),
    fault("padding of other rows", "model/generate.py", "Padding(padding.counts[chosen],",
          "Padding(padding.counts[: len(left)],", ROWS, RANDOM),
    fault("generators of other rows", "model/sampling.py", "[self._generators[row] for row in rows])",
          "self._generators[: len(rows)])", "batches::drawn_answers_do_not_depend_on_the_batch"),
    fault("rows draw the same numbers", "model/sampling.py", "elif index == 0:", "elif True:",
          "batches::drawn_answers_do_not_depend_on_the_batch"),
    fault("an image of a batch read twice", "engine.py", "if key in rows:", "if False:",
          "fast::no_image_of_a_batch_is_read_twice_where_none_can_be_kept"),
    fault("drawn by the place in the batch", "engine.py", "[start + row for row in turns]", "list(turns)",
          "batches::drawn_answers_do_not_depend_on_the_batch"),
    fault("top_p keeps too few", "model/sampling.py", "probabilities.cumsum(dim=-1) - probabilities",
          "probabilities.cumsum(dim=-1)", "parity::top_p_keeps_the_smallest_set_that_reaches_it"),
    fault("ranked answers see each other", "model/likelihood.py", "(owner[:, None] == owner) & (positions",
          "(positions", RANKED),
    fault("a ranked answer's end left out", "model/likelihood.py", "if stops:", "if False:", RANKED),
    fault("a ranked answer without its window", "model/likelihood.py", "decoder.config.window is not None", "False",
          RANKED),
    fault("a stop id left out", "engine.py", 'control.get("<|endoftext|>"), *model.config.eos_token_ids)',
          'control.get("<|endoftext|>"))', "forms::prompt_stops_and_picture_are_the_published_ones"),
    fault("half a character shown", "engine.py", "text.rstrip(REPLACEMENT)", "text.rstrip()",
          "tokens::pieces_join_to_the_text_and_hold_no_half_character"),
    fault("the last stop string counts", "engine.py", "text[: min(cuts)]", "text[: max(cuts)]",
          "tokens::the_first_of_two_stop_strings_counts"),
    fault("a stop string's beginning shown", "engine.py", "range(min(len(stop), len(text)), 0, -1)", "range(0)",
          "tokens::a_stop_string_never_leaks"),
    fault("any picture's prefix", "engine.py", "sha256(pixels.numpy().tobytes())",
          "sha256(str(pixels.shape).encode())", "fast::a_picture_is_read_once"),
    fault("questions padded at the right", "engine.py", 'padding_side="left"', 'padding_side="right"', RANDOM, BATCH),
    fault("a stale stream accepted", "engine.py", "if self.number != self.conversation.count:", "if False:",
          "assistant::a_second_stream_of_one_chat_is_refused"),
    fault("an answer read twice", "engine.py", "kept[max(0, cache.length - turn.prompt_length) :]", "kept",
          "assistant::a_chat_equals_reading_the_whole_prompt"),
    fault("halves of a batch swapped", "engine.py", "((items[:half], start), (items[half:], start + half))",
          "((items[half:], start + half), (items[:half], start))", "fast::a_batch_that_does_not_fit_is_halved"),
    fault("a look counted for each question", "imp.py", "self.view._unreported_seconds = 0.0",
          "pass", "assistant::a_look_is_counted_once"),
    fault("another checkpoint's tokenizer accepted", "imp.py", "    check_tokenizer(tokenizer, plan)", "    pass",
          "assistant::a_tokenizer_larger_than_the_vocabulary"),
    fault("no stop mark before a later turn", "prompts.py", 'later="</s>USER: {}', 'later=" USER: {}',
          "prompts::later_turn"),
    fault("a question may hold the picture's mark", "prompts.py", "if IMAGE in question:", "if False:",
          "prompts::a_question_that_cannot_be_asked"),
    fault("an answer's page not escaped", "answers.py", "html.escape(self.text)", "self.text",
          "assistant::an_answer_tells_how_it_came_about"),
    fault("an answer's beginning without its blank", "engine.py", "self.template.answer + text", "text",
          "next_tokens::the_probabilities_are_those_of_transformers"),
    fault("next tokens at another temperature", "engine.py", "Sampling(temperature=temperature)",
          "Sampling(temperature=1.0)", "next_tokens::the_probabilities_are_those_of_transformers"),
    fault("an unknown setting accepted", "settings.py", 'unknown = sorted(settings.keys() - {*known, "stop"})',
          "unknown = []", "assistant::settings_without_sense_are_told_before_any_work"),
    fault("no thread at all", "device.py", "max(1, int(free + 0.25))", "int(free + 0.25)",
          "threads::a_batch_takes_the_threads_that_are_free_and_at_least_one"),
    fault("threads not given back", "device.py", "torch.set_num_threads(before)", "pass",
          "threads::an_error_in_between_gives_the_threads_back"),
    fault("own work counts as others'", "system/cpu_meter.py", "(busy - own) / seconds", "busy / seconds",
          "threads::ones_own_work_is_not_counted"),
)  # fmt: skip
IMAGES = (
    fault("another pad colour", "images.py", "(127, 127, 127)", "(128, 128, 128)", "images::pad"),
    fault("bilinear", "images.py", "Image.Resampling.BICUBIC", "Image.Resampling.BILINEAR", "parity::same_pixels"),
    fault("pixels from 0 to 1", "images.py", "squashed / 127.5 - 1.0", "squashed / 255", "parity::same_pixels"),
    fault("squashed where it says pad", "checkpoints/config.py", 'pad=read.value("image_aspect_ratio") == "pad"',
          "pad=False", "forms::prompt_stops_and_picture_are_the_published_ones"),
    fault("turned the other way", "images.py", "6: Image.Transpose.ROTATE_270", "6: Image.Transpose.ROTATE_90",
          "images::exif_orientation"),
    fault("a bomb is decoded", "images.py", "if width * height > most:", "if False:", "images::huge_array"),
    fault("EXIF of big endian not read", "image_files.py", 'b"MM\\0*": ">"}', 'b"MM\\0*": "<"}',
          "images::damaged_exif_entries_cost_neither_the_picture_nor_its_orientation"),
    fault("the first of two boxes", "boxes.py", "if len(found) != 1:", "if not found:",
          "boxes::what_is_no_box_was_not_found"),
    fault("a box of the padded square", "boxes.py", "(value * max(size) - before) / length",
          "(value * max(size)) / length", "boxes::padding_is_undone"),
)  # fmt: skip
CHECKPOINTS = (
    fault("pickles not named", "checkpoints/files.py", "if pickles:", "if False:",
          "hostile::a_pickle_alone_is_refused", "weights::pickles_are_refused_and_never_opened"),
    fault("links followed anywhere", "checkpoints/files.py",
          "own = target.is_relative_to(os.path.realpath(file.parent))", "own = True",
          "hostile::a_link_out_of_the_folder_is_refused"),
    fault("a header of any length", "checkpoints/files.py", "if length > TEXT_LIMIT:", "if False:",
          "hostile::a_header_that_is_too_long_is_not_read"),
    fault("a file of any length read", "checkpoints/files.py", "if size > TEXT_LIMIT:", "if False:",
          "hostile::a_huge_or_endlessly_nested_tokenizer"),
    fault("code downloaded, too", "checkpoints/hub.py", 'WANTED = ("*.safetensors",',
          'WANTED = ("*.safetensors", "*.py",', "hub::a_name_downloads_weights_settings_and_tokenizer_and_no_code"),
    fault("control tokens made of letters", "checkpoints/tokenizer.py", "tokenizer.encode_special_tokens = True",
          "tokenizer.encode_special_tokens = False", "hostile::no_question_holds_a_control_token",
          "tokens::control_tokens_typed_by_a_user_are_letters"),
    fault("a forged control token accepted", "checkpoints/tokenizer.py", "if not self._control_ids.isdisjoint(ids):",
          "if False:", "hostile::letters_that_make_a_control_token_are_refused"),
    fault("blanks kept behind a mark", "checkpoints/tokenizer.py", "piece = piece.lstrip()", "pass",
          "forms::every_name_of_a_checkpoint_answers_as_transformers_does"),
    fault("another normal form", "checkpoints/tokenizer_files.py", "normalizers.NFC()", "normalizers.NFKD()",
          "forms::slow_tokenizers_give_the_ids_of_the_slow_class"),
    fault("no beginning token", "checkpoints/tokenizer_files.py", 'asked = name == "bos"', "asked = False",
          "forms::a_tokenizer_model_alone_has_llamas_own_marks", "forms::the_settings_say_what_stands_around_a_prompt"),
    fault("bytes counted as bits", "checkpoints/inspect.py", "int(bits[0]) // 8", "int(bits[0])",
          "hub::inspecting_downloads_no_weights"),
    fault("q and k named the wrong way round", "checkpoints/key_maps.py",
          'SEPARATE_QKV = ("self_attn.q_proj", "self_attn.k_proj",',
          'SEPARATE_QKV = ("self_attn.k_proj", "self_attn.q_proj",',
          LOGITS),
    fault("too little memory not told", "checkpoints/load.py", "if needed > free:", "if False:",
          "weights::too_little_memory_is_said_before_anything_is_read"),
    fault("a tensor of another shape accepted", "checkpoints/plan.py", "if info.shape != expected:", "if False:",
          "weights::misshapen_tensor"),
    fault("integers taken for weights", "checkpoints/plan.py", "if info.dtype not in FLOATS:", "if False:",
          "weights::tensors_that_are_no_weights"),
    fault("tied embeddings accepted", "checkpoints/config.py",
          'read.expect((False,), "tie_word_embeddings", default=False)', "pass",
          "weights::config_that_makes_no_sense"),
    fault("louder noise", "checkpoints/published.py", "mul_(0.02)", "mul_(0.2)",
          "bench::random_weights_are_noise_and_repeat"),
    fault("memory to work with forgotten", "checkpoints/registry.py", "self.weight_bytes + WORKING_BYTES",
          "self.weight_bytes", "doctor::every_checkpoint_has_a_size"),
)  # fmt: skip
OTHERS = "subjects/transformers_model.py"
OTHERS_BATCH = "transformers_subject::a_batch_gives_the_answers_of_single_questions"
OTHERS_BY_HAND = "transformers_subject::answers_are_those_of_generate_by_hand"

TOOLS = (
    fault("not found is a success", "tools/cli.py", "return 0 if box else 1", "return 0",
          "cli::locate_says_what_was_not_found_and_draws_nothing"),
    fault("any status is an answer of the hub", "tools/doctor.py", "if status == 200:", "if status:",
          "doctor::a_refused_token"),
    fault("the first chain of errors counts", "tools/doctor.py", "for chain in reversed(chains)", "for chain in chains",
          "doctor::the_deepest_error_of_the_last_chain_counts"),
    fault("attention among a prompt's own tokens free", "tools/bench.py", "+ tokens * (tokens + 1) / 2", "",
          "bench::costs_of_the_published_sizes"),
    fault("remote code without consent", "tools/official.py", "if trust_remote_code is not True:", "if False:",
          "official::without_the_trust_flag"),
    fault("code of another repository", "tools/official.py",
          "if owner and owner.lower() != snapshot.name.lower():", "if False:",
          "official::a_snapshot_that_does_not_fit_is_refused_before_its_code_runs"),
    fault("code at a branch", "tools/official.py", "if COMMIT.fullmatch(str(commit)):", "if commit:",
          "official::without_a_full_commit_the_cached_one_is_named"),
    fault("any name is a sample", "samples.py", "if name not in NAMES:", "if not name:",
          "notebook_helpers::another_name_is_refused_with_those_that_there_are"),
    fault("every answer is right", "exercises/__init__.py", "    if not condition:", "    if False:",
          "notebook_helpers::a_check_says_right_or_not_yet_and_why"),
    fault("any level is right", "exercises/captcha.py", "expect(found == wanted, f\"For", "expect(True, f\"For",
          "captcha_lesson::exercise_level"),
    fault("the level of most read", "experiments/captcha/probe.py", "return max((level for level, flags",
          "return min((level for level, flags", "reading::the_rule_for_the_level_of_the_captions"),
    fault("captions on the codes that chose their level", "experiments/captcha/probe.py", '"captions": 500}',
          '"captions": 0}', "reading::a_run_asks_about_captions_where_the_ladder_is_read"),
    fault("a reading of another square", "experiments/recorded.py", 'f"after {square} x" in name or', "True or",
          "captcha_lesson::each_way_has_a_table_of_the_whole_ladder"),
    fault("any number of looks", "exercises/setup.py", "expect(len(looks) == 1,", "expect(len(looks) >= 1,",
          "notebook_helpers::exercise_ask_all"),
    fault("each panel of bars with a scale of its own", "tools/notebook.py", "xlim=(0, 1.25), ", "",
          "captioning::panels_have_one_scale"),
    fault("a solution that its check refuses", "exercises/captioning.py", "(4 / 7, 3 / 7)", "(3 / 7, 4 / 7)",
          "captioning::a_solution_is_right_and_an_empty_cell_is_not_yet"),
    fault("a question is learned, too", "finetuning/examples.py", "EncodedExample(example, ids, len(begun))",
          "EncodedExample(example, ids, 1)", "finetune::what_is_trained_on_is_what_ask_reads"),
    fault("no end learned", "finetuning/examples.py", "answer.strip(), Control(template.stop)))", "answer.strip(),))",
          "finetune::what_is_trained_on_is_what_ask_reads"),
    fault("an adapter after the activation", "finetuning/adapters.py", "(path), GeluLinear)}", "(path), tuple)}",
          "finetune::loss_and_gradients_are_those_of_transformers_with_peft"),
    fault("merged without alpha / rank", "finetuning/adapters.py", "return self.scale * (", "return (",
          "finetune::merged_equals_unmerged"),
    fault("each part of a product gets the first rows", "finetuning/adapters.py", "self.b[start:stop] @",
          "self.b[: (stop or len(self.b)) - start] @", "finetune::merged_equals_unmerged"),
    fault("what fills up a batch is learned", "finetuning/training.py", "(position >= starts) & (position < ends)",
          "(position >= starts)", "finetune::a_batch_is_the_mean_over_the_tokens_of_its_rows"),
    fault("one order for all epochs", "finetuning/training.py", "torch.randperm(len(rows), generator=generator)",
          "torch.arange(len(rows))", "finetune::each_epoch_has_every_example_once_in_another_order"),
    fault("a trained model's memory is kept", "finetuning/run.py", "        gc.collect()  #", "        pass  #",
          "finetune::the_memory_of_a_run_is_free_after_it"),
    fault("an error keeps the model's memory", "finetuning/run.py", "        _free_frames(error)\n", "",
          "finetune::the_memory_of_a_run_is_free_after_it"),
    fault("half a checkpoint is left", "finetuning/run.py", "shutil.rmtree(folder, ignore_errors=True)", "pass",
          "finetune::an_interrupted_run_leaves_nothing"),
    fault("a published name for another checkpoint", "finetuning/run.py", "if target.name.lower() in (NANO, *HUB_IDS):",
          "if False:", "finetune::an_out_that_cannot_be_a_new_checkpoint"),
    fault("one package told of several", "system/extras.py", "pip install {' '.join(missing)}",
          "pip install {missing[0]}", "extras::all_that_is_missing_is_named_at_once"),
    fault("code of others is trusted", OTHERS, "trust_remote_code=False, local", "trust_remote_code=True, local",
          "transformers_subject::code_beside_a_known_model_is_not_run"),
    fault("a short prompt padded at its end", OTHERS, '"right" if encodes else "left"', '"right"', OTHERS_BATCH),
    fault("answers in another order", OTHERS, "dict(zip(rows, self._in_parts", "dict(zip(rows[::-1], self._in_parts",
          OTHERS_BATCH),
    fault("draws as a model's files say", OTHERS, "do_sample=False,", "repetition_penalty=own.repetition_penalty,",
          OTHERS_BY_HAND),
    fault("the prompt as a part of the answer", OTHERS, "if not self._begun:", "if self._begun is None:",
          OTHERS_BY_HAND),
    fault("an end that is none", OTHERS, "if token in stop_ids or self.decoder.stopped:", "if self.decoder.stopped:",
          OTHERS_BY_HAND),
    fault("two beginnings of a prompt", OTHERS, "prompt.removeprefix(tokenizer.bos_token) for", "prompt for",
          "transformers_subject::a_prompt_begins_once"),
    fault("weights that are not there stay random", OTHERS, "    if missing:\n", "    if missing and not model:\n",
          "transformers_subject::weights_that_are_not_whole"),
    fault("another template unnoticed", OTHERS, "return weights | {", "return weights or {",
          "transformers_subject::the_identity_names_what_can_change_an_answer"),
    fault("a model of others larger than memory", OTHERS, "if needed > free:", "if needed > 2 * free:",
          "transformers_subject::memory_is_told_before_anything_is_loaded"),
    fault("a question with a control token", OTHERS, "for token in tokens if token in question", "for token in ()",
          "transformers_subject::what_cannot_be_asked"),
    fault("pickles of others are downloaded", OTHERS, "revision=commit, allow_patterns=names", "revision=commit",
          "transformers_subject::an_id_of_the_hub"),
)  # fmt: skip
EXPERIMENTS = (
    fault("another checkpoint's answers kept", "experiments/runs.py", "case.question, identity, settings, __version__",
          "case.question, settings, __version__", "record::whatever_can_change_an_answer_changes_its_key"),
    fault("a failure replaces an answer", "experiments/runs.py", 'if record["status"] == "ok" or not same:', "if True:",
          "record::a_later_failure_replaces_no_answer_to_the_same"),
    fault("records as they arrived", "experiments/runs.py", "number if isinstance(number, int)",
          "0 if isinstance(number, int)", "record::records_stand_in_the_order_of_the_cases_however_answers_came"),
    fault("two writers at once", "experiments/files.py", "not in (errno.EAGAIN, errno.EACCES)", "is not None",
          "files::of_three_writers_at_once_one_writes_and_two_say_so"),
    fault("scores of other samples", "experiments/frames.py", "zip(answered, probe.samples(answered), strict=True)",
          "zip(answered, reversed(probe.samples(answered)), strict=True)",
          "frames::scores_of_a_reading_are_those_of_the_records"),
    fault("an old name gives an empty module", "moved.py", "sys.modules[module.__name__] = import_module(",
          "import_module(", "moved::an_old_name_gives_the_module_of_today"),
    fault("letters' case counts", "experiments/scores.py", 'normalize("NFKC", text).upper()',
          'normalize("NFKC", text)', "scores::normalising_keeps_letters_and_digits_only"),
    fault("edits over the shorter text", "experiments/scores.py",
          "longer = max(len(normalise(read)), len(normalise(truth)))",
          "longer = min(len(normalise(read)), len(normalise(truth)))",
          "scores::the_share_of_edits_is_over_the_longer_text"),
    fault("another interval", "experiments/stats.py", 'method="wilson"', 'method="exact"',
          "stats::wilson_is_its_formula"),
    fault("adjusted p-values fall", "experiments/stats.py", "np.maximum.accumulate(p[order]", "(p[order]",
          "stats::holm_by_hand"),
    fault("rows drawn for clusters", "experiments/stats.py", "rows.shape[1]))\n    np.add.at(sums, owner, rows)",
          "rows.shape[1]))\n    sums = rows", "stats::the_bootstrap_draws_clusters"),
    fault("failed samples not counted", "experiments/report.py", "failed = len(records) - len(answered)", "failed = 0",
          "report::failed_samples_are_counted_apart"),
    fault("imp-nano passed off as Imp", "experiments/report.py", 'head["checkpoint"] == NANO or',
          "", "report::imp_nano_is_not_passed_off_as_imp"),
    fault("a ladder of other shares", "experiments/plots.py", "middle = [share.share for share in shares]",
          "middle = [share.high for share in shares]", "report::plots_show_the_shares_with_their_intervals"),
    fault("things off their place", "experiments/drawings.py", "middle = (2 * index + 1) / 6",
          "middle = (2 * index + 1.6) / 6", "nano::a_scene_is_what_it_says"),
    fault("formulas in answers", "experiments/markdown.py", "[#$&*:", "[#&*:",
          "markdown::a_text_in_a_cell_is_shown_as_its_letters"),
    fault("contrast upside down", "experiments/captcha/codes.py", "GROUND * (1 - distortion.contrast)",
          "GROUND * distortion.contrast", "captcha::contrast_is_the_tone_of_the_ink"),
    fault("another code at each level", "experiments/captcha/probe.py", "sample_code(seed)",
          "sample_code(seed + cell.level)", "reading::the_same_seed_shows_the_same_code_in_every_condition"),
    fault("short names found in long ones", "experiments/japanese/words.py",
          "sorted(terms, key=lambda pair: -len(pair[0]))", "sorted(terms)", SCORED),
    fault("parts of compounds are words", "experiments/japanese/words.py",
          "return not compound or", "return True or", SCORED),
    fault("what a reply denies is named", "experiments/japanese/words.py",
          "(denied or not _is_denied(reply, end))", "True", SCORED),
    fault("a reply about another thing is yes", "experiments/japanese/words.py",
          "if not states or (about and not _is_about(clause, about, question, names)):", "if not states:", SCORED),
    fault("any named thing is right", "experiments/japanese/probe.py",
          "return _named(reply, answer_kind, question) == {expected}",
          "return expected in _named(reply, answer_kind, question)", SCORED),
    fault("a missing score is zero", "experiments/claims/tables.py", "float(text) if text else math.nan",
          "float(text or 0)", "claims::cells_that_are_missing_are_no_zeros"),
    fault("a column that is left out counts", "experiments/claims/tables.py", "for each in columns if each != out]",
          "for each in columns]", "claims::ranks_with_a_column_less_and_the_share_of_wins"),
    fault("a lead within chance is sure", "experiments/claims/tables.py", "if pair[2].low <= 0]",
          "if pair[2].value <= 0]", "claims::unclear_pairs_are_those_whose_interval_holds_zero"),
    fault("a figure without its sources", "experiments/claims/plots.py", "figure.supxlabel(foot,",
          'figure.supxlabel("",', "claims::each_figure_names_its_sources_inside_its_edges"),
    fault("splits that differ may be compared", "exercises/claims.py", '({"split": "test"}, False,',
          '({"split": "dev"}, True,', "claims::a_wrong_answer_gets_a_hint"),
    fault("no face for Japanese", "system/faces.py", 'return ["DejaVu Sans", "IPAexGothic"]', 'return ["DejaVu Sans"]',
          "japanese::japanese_text_of_plots_has_its_letters"),
    fault("characters counted as bytes", "exercises/japanese.py", "len(SENTENCE.encode()), len(SENTENCE)",
          "3 * len(SENTENCE), len(SENTENCE)", "japanese::exercises"),
    fault("letters of other bytes", "experiments/japanese/tokenized.py", "chr(256 + i)", "chr(257 + i)",
          "tokenized::the_letters_of_bytes_are_those_of_the_library"),
    fault("two models with one name", "exercises/loading.py", "safe not in models,\n", "True,\n",
          "loading::exercise_safe_name"),
    fault("any of the calls is enough", "exercises/loading.py", "in found and version in failing", "in ()",
          "loading::exercise_versions_that_work"),
    fault("recorded calls without a word", "experiments/transformers_matrix/lesson.py",
          """        print(f"{error}\\nUntil then you see what was recorded.")\n""", "",
          "loading::without_the_version_an_attempt_gives_what_was_recorded_and_says_so"),
    fault("pip's colors in an error", "experiments/transformers_matrix/measure.py", """, "--no-color", """, ", ",
          "loading::a_version_that_pip_cannot_fetch"),
    fault("versions in the order of their letters", "experiments/transformers_matrix/measure.py",
          "key=lambda row: Version(row.version))", "key=lambda row: row.version)",
          "loading::spans_and_the_last_version_that_works"),
    fault("only images choose", "lessons/contrastive.py",
          "(F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2", "F.cross_entropy(logits, right)",
          "contrastive::the_softmax_loss_is_that_of_both_directions"),
    fault("every pair belongs together", "lessons/contrastive.py", "signs = 2 * torch.eye(len(logits)) - 1",
          "signs = torch.ones_like(logits)", "contrastive::the_sigmoid_loss_asks_of_each_pair"),
    fault("held-out pairs are learned", "lessons/contrastive.py",
          "if (color, kind) not in UNSEEN_PAIRS)", ")", "contrastive::what_is_held_out_is_in_no_drawing_to_learn_from"),
    fault("half of the loss is enough", "exercises/contrastive.py", "_near(found, wanted) or not only_one,",
          "True,", "contrastive::a_wrong_answer_gets_a_hint"),
    fault("cut off is wrong", "lessons/compare.py", '"length": "cut off"', '"length": "wrong"',
          "compare::the_rule_for_outcomes", "compare::a_limit_that_is_too_small_cuts_and_does_not_make_wrong"),
    fault("who cannot be asked is wrong", "lessons/compare.py", "frame[~frame.outcome.isin(NOT_ASKED)]", "frame",
          "compare::differences_are_paired_and_only_over_shared_questions"),
    fault("yes more often than no", "lessons/compare.py", "1000 * seed + 5 * (i // len(names))", "1000 * seed + i",
          "compare::the_questions_ask_each_skill_as_often_and_each_about_a_drawing_of_its_own"),
    fault("other words by the same name", "lessons/compare.py", '"words": self.words, "image": self.image}',
          '"image": self.image}', "compare::whoever_is_asked_otherwise_is_another_subject"),
    fault("one direction is enough", "exercises/compare.py", "mcnemar([True] * one + [False] * other, [False] * one +",
          "0.5 * mcnemar([True] * one + [False] * other, [False] * one +",
          "compare::a_solution_is_right_and_an_empty_cell_is_not_yet"),
    fault("attention without its scale in the lesson", "lessons/inside/steps.py",
          "k.transpose(-1, -2) / math.sqrt(width // queries)", "k.transpose(-1, -2)",
          "inside::the_weights_make_the_layers_own_output"),
    fault("the lens without the last norm", "lessons/inside/steps.py", "decoder.logits(decoder.norm(hidden))",
          "decoder.logits(hidden)", "inside::the_lens_reads_each_depth_with_the_output_layer"),
    fault("occlusion upside down", "lessons/inside/steps.py", "(whole - torch.stack(rest))",
          "(torch.stack(rest) - whole)", "inside::occlusion_is_what_covering_costs"),
    fault("tanh passed off as the exact GELU", "lessons/inside/towers.py", "F.gelu(inner, approximate=gelu)",
          'F.gelu(inner, approximate="tanh")', "inside::a_plain_towers_layers_are_those_of_transformers"),
    fault("cross-attention in every layer", "lessons/inside/projectors.py", "layers // 2 * cross", "layers * cross",
          "inside::parameters_of_a_q_former"),
    fault("dots of another patch", "lessons/inside/plots.py", "width * (columns + 0.5) - 0.5, width * (rows",
          "width * (rows + 0.5) - 0.5, width * (columns", "inside::figures_show_their_values"),
    fault("any splice is right", "exercises/inside.py", "difference <= SAME,", "True,", "inside::a_wrong_splice"),
    fault("any of several numbers is right", "experiments/documents/answers.py", "right and len(found) == 1", "right",
          "documents::answers_are_scored_as_judged_by_hand"),
    fault("bars higher than their values", "experiments/documents/pages.py", "(BOTTOM - TOP) * value / 100",
          "(BOTTOM - TOP) * value / 98", "documents::bars_are_as_high_as_the_truth_says"),
    fault("a control shows the question's own document", "experiments/documents/probe.py",
          'seed + OTHER * (cell.control == "other image")', "seed",
          "documents::a_control_has_the_same_question_and_truth_and_another_image"),
    fault("letters of unknown strokes left out", "experiments/documents/strokes.py", "if letter not in LETTERS:",
          "if False:", "documents::letters_are_told_apart"),
    fault("corners taken for widths", "experiments/documents/refcoco.py", '(x + width) / image["width"]',
          'width / image["width"]', "documents::expressions_are_read_and_located"),
    fault("an answer about another thing is yes", "experiments/pope/probe.py", "if named and kind not in named:",
          "if False:", "pope::an_answer_says_yes_or_no_as_judged_by_hand"),
    fault("adversarial things at random", "experiments/pope/scenes.py", 'if sampling != "random":',
          'if sampling == "popular":',
          "pope::popular_things_are_frequent_and_adversarial_ones_come_with_those_in_the_image"),
    fault("overlap of boxes apart", "exercises/documents.py",
          "math.isclose(found, wanted, abs_tol=1e-3),", "True,", "documents::exercise_iou"),
    fault("the answer sees no image", "lessons/two_stages/network.py",
          "torch.cat((image, self.decoder.embed(ids)), dim=1)",
          "torch.cat((0 * image, self.decoder.embed(ids)), dim=1)",
          "two_stages::words_see_the_image_and_the_words_before_them_alone"),
    fault("left and right confused", "lessons/two_stages/pictures.py", '"on the left", "in the middle", "on the right"',
          '"on the right", "in the middle", "on the left"', "two_stages::answers_of_the_tiny_world"),
    fault("the question is learned, too", "lessons/two_stages/stages.py",
          "labels[row, start:end] = ids[row, start:end]", "labels[row, :end] = ids[row, :end]",
          "two_stages::only_the_answer_is_learned"),
    fault("the exam asks about what was learned", "lessons/two_stages/new_shape.py",
          "np.random.default_rng([EXAM, seed])", "np.random.default_rng([LESSONS, seed])",
          "two_stages::the_exam_is_no_lesson"),
    fault("wrong answers in green", "lessons/two_stages/plots.py", "RIGHT if answer == question.answer else WRONG",
          "RIGHT", "two_stages::compared_answers_are_those_of_each_checkpoint"),
    fault("any labels are right", "exercises/training.py", "expect(found == wanted, f", "expect(True, f",
          "two_stages::a_wrong_answer"),
    fault("a resumed run forgets its optimizer", "nano/training/train.py",
          'optimizer.load_state_dict(state["optimizer"])', "pass", "nano::training_goes_on_where_it_was_killed"),
    fault("a resumed run draws from the start", "nano/training/train.py", "lesson(self.config, self.start + index)",
          "lesson(self.config, index)", "nano::training_goes_on_where_it_was_killed"),
)  # fmt: skip
# Of app.py only where gradio and Chromium are installed, as its tests are skipped elsewhere.
CHAT_WEB = (
    fault("gradio not asked for by name", "chat_web/__init__.py", 'require("chat-web", what="Imp Chat")', "pass",
          "chat_web::without_gradio_the_command_says_what_to_install"),
    fault("pictures left behind at the end", "chat_web/app.py", "shutil.rmtree(self._folder, ignore_errors=True)",
          "pass", "chat_web::the_end_leaves_no_picture_behind"),
    fault("the same picture again begins anew", "chat_web/conversation.py", "if digest == self._digest:", "if False:",
          "chat_web::another_picture_begins_anew_and_a_copy_of_the_same_does_not"),
    fault("an old answer in the new conversation", "chat_web/conversation.py", "if number == self.number:", "if True:",
          "chat_web::a_new_conversation_ends_the_answer_of_the_old_one"),
    fault("every conversation kept in memory", "chat_web/conversation.py", "sum(sizes) > MAX_KEPT_BYTES", "False",
          "chat_web::conversations_that_need_too_much_memory_are_set_aside"),
    fault("every file of the machine served", "chat_web/guard.py", "startswith(self.folder)", 'startswith("/")',
          "chat_web::the_gate_refuses_other_routes"),
    fault("other sites let through", "chat_web/guard.py", "outside or cross_site or rebound", "outside or rebound",
          "chat_web::the_gate_refuses_other_sites_and_addresses_in_place_of_files"),
    fault("a name of a web page", "chat_web/guard.py", "outside or cross_site or rebound", "outside or cross_site",
          "chat_web::the_gate_refuses_names_that_are_not_this_machines"),
    fault("a number in brackets is no number", "system/loopback.py", '.removeprefix("[")', "",
          "serving::without_a_key_only_this_machine_is_named"),
    fault("a font from elsewhere", "chat_web/look.py", "footer { display: none !important; }",
          "@import url(https://fonts.example/a.css);", "chat_web::the_style_sheet_fetches_nothing"),
    fault("answers taken for HTML", "chat_web/page.py", "dir='auto'>{html.escape(text)}</p>", "dir='auto'>{text}</p>",
          "chat_web::what_is_shown_holds_no_html_of_others"),
    fault("regions of a language not known", "chat_web/texts.py", '.split("-")[0]', "",
          "chat_web::the_first_language_is_that_of_the_browser"),
)  # fmt: skip
SERVING = (
    fault("one setting for a whole batch", "model/sampling.py",
          "alike.setdefault((sampling.temperature, sampling.top_p)", "alike.setdefault((0.0, 1.0)",
          "serving::32_clients_at_once_get_the_answers_of_ask"),
    fault("scores after the temperature", "engine.py", "logs = scores.log_softmax(dim=-1)",
          "logs = (scores / 2).log_softmax(dim=-1)", "serving::scores_are_those_of_transformers"),
    fault("scores of tokens that are cut off", "engine.py", "while kept and len(", "while False and len(",
          "serving::scores_of_a_stream_end_with_its_text"),
    fault("an earlier answer without its blank", "engine.py", "encode(self.engine.template.answer + text,",
          "encode(text,", "serving::earlier_turns_given_as_text_are_those_of_a_chat"),
    fault("work for clients that have gone", "serving/batching.py", "        self.turn.cancel()\n", "",
          "serving::a_client_that_goes_stops_the_work"),
    fault("no end of the queue", "serving/batching.py", "if self.places >= self.batch_size + self.queue:", "if False:",
          "serving::more_requests_than_places"),
    fault("images of any size", "serving/requests.py", "max_pixels=MAX_IMAGE_PIXELS, ", "",
          "serving::an_image_of_many_pixels"),
    fault("any kind of file", "serving/requests.py", ", formats=FORMATS)", ")",
          "serving::a_kind_of_file_that_another_program_would_draw"),
    fault("unknown parameters without a word", "serving/requests.py", "if value is not None and name not in NO_EFFECT",
          "if False and name not in NO_EFFECT", "serving::a_request_that_is_refused"),
    fault("any name of the machine", "serving/app.py", "if names_this_machine(host):", "if True:",
          "serving::without_a_key_only_this_machine_is_named"),
    fault("a web page may ask", "serving/app.py", "        _check_kind(request.headers)\n", "",
          "serving::a_web_page_cannot_ask"),
    fault("a place is kept", "serving/app.py", "            batcher.leave(job)\n            raise", "            raise",
          "serving::a_place_is_given_back_whatever_happens"),
    fault("an empty key", "serving/server.py", "if key is not None and not (", "if key is not None and None is (",
          "serving::settings_that_make_no_sense"),
)  # fmt: skip
ENDPOINT, BESIDE = "subjects/openai_endpoint.py", "experiments/side_by_side.py"
PASSES = "openai_endpoint::a_fault_that_passes_costs_another_request"
RECORDED = "openai_endpoint::a_fault_of_one_sample_is_recorded_and_the_others_are_answered"

SUBJECTS = (
    fault("any picture of the machine", "chat_web/app.py", 'Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):',
          'Path("/")):', "chat_web::only_what_was_uploaded_is_opened"),
    fault("a key of another server is sent", ENDPOINT, "extra_headers=self._headers, ", "",
          "openai_endpoint::what_is_sent"),
    fault("images follow a redirect", ENDPOINT, "follow_redirects=False", "follow_redirects=True",
          "openai_endpoint::a_fault_of_all_requests_stops_the_run_at_once"),
    fault("a loopback address through a proxy", ENDPOINT, "trust_env=not local", "trust_env=True",
          "openai_endpoint::what_is_sent"),
    fault("Retry-After not honoured", ENDPOINT, "max(delay, failed.after or 0)", "delay", PASSES),
    fault("half a body is the end", ENDPOINT, '({cause or type(cause).__name__}).", again=True)',
          '({cause or type(cause).__name__}).")', PASSES),
    fault("an answer of any length", ENDPOINT, "if len(body) > MOST_BYTES:", "if not body:", RECORDED),
    fault("a refusal is no refusal", ENDPOINT, "if refusal or finish in REFUSED:", "if finish in REFUSED:",
          "openai_endpoint::refusals_and_length_stops_are_answers_told_apart"),
    fault("a key in the records", ENDPOINT, 'text=self._without_key(text or refusal or "")',
          'text=text or refusal or ""',
          "openai_endpoint::the_key_is_in_no_file_and_no_message"),
    fault("a key repeated in an error", ENDPOINT, 'if re.fullmatch("[A-Z_]+", name) else', "if name else",
          "openai_endpoint::what_makes_no_endpoint"),
    fault("a question in the image's place", ENDPOINT, "        check_order(image, question)\n", "",
          "openai_endpoint::what_is_no_pair_is_an_error_in_its_place"),
    fault("answers under way thrown away", ENDPOINT, "elif not (end and isinstance(reply, Exception)):",
          "elif not end:",
          "openai_endpoint::answers_that_are_under_way_are_kept_when_the_run_stops"),
    fault("a request too many", ENDPOINT, "else islice(rest, 1):", "else islice(rest, 2):",
          "openai_endpoint::a_question_is_taken_only_once_an_answer_was"),
    fault("a device for an endpoint", "subjects/named.py", 'if {device, dtype, revision} != {"auto", None}:',
          "if False:", "openai_endpoint::subjects_by_name"),
    fault("answers given to other cases", "experiments/runs.py", "case = mine[number]", "case = mine[done - 1]",
          "openai_endpoint::each_answer_is_on_disk_as_soon_as_it_is_there"),
    fault("another model unnoticed", "experiments/runs.py", "if name and names and name not in names:", "if not names:",
          "openai_endpoint::another_model_behind_the_same_name_is_noticed"),
    fault("pairs of different pictures", BESIDE, '= ["sample_id", "picture_sha256", "question"]', '= ["sample_id"]',
          "side_by_side::another_picture_or_a_failed_sample_is_no_pair"),
    fault("six answers count as six images", BESIDE, ".groupby(_about(measure, paired)).sum()", "",
          "side_by_side::differences_are_of_the_same_samples_after_holm"),
    fault("runs of other sizes side by side", BESIDE, ', self.head.get("size"), ', ", ",
          "side_by_side::only_runs_of_one_design_stand_side_by_side"),
)  # fmt: skip
LLAMA_CPP = (
    fault("gate and up swapped for llama.cpp", "llama_cpp/names.py", '("ffn_gate", "ffn_up") if',
          '("ffn_up", "ffn_gate") if', "gguf::every_value_of_the_language_model_is_there"),
    fault("a norm of the tower misnamed", "llama_cpp/names.py", '"layer_norm2": "ln2"', '"layer_norm2": "ln3"',
          "gguf::every_value_of_the_tower_is_there"),
    fault("pieces of a tensor overlap", "llama_cpp/tensors.py", "rows = slice(row - start,",
          "rows = slice(max(0, row - start - 1),", "gguf::pieces_make_the_same_file"),
    fault("values beyond fp16 pass", "llama_cpp/tensors.py", "FP16_MAX = 65504.0", 'FP16_MAX = float("inf")',
          "gguf::values_that_a_type_cannot_hold"),
    fault("scores in four bits", "llama_cpp/tensors.py", 'self._type == "q4_0"', "False",
          "gguf::each_type_keeps_values_within_its_steps"),
    fault("a window forgotten", "llama_cpp/export.py", "decoder.window or decoder.max_positions",
          "decoder.max_positions", "gguf::a_window_bounds_the_context"),
    fault("a file under its name too early", "llama_cpp/export.py", 'f"{file.name}.partial"', "file.name",
          "gguf::a_killed_export_leaves_no_file_under_its_name"),
    fault("others called Phi-3 for llama.cpp", "llama_cpp/export.py", "and PHI3_TOKENS.issubset(tokens)", "",
          "gguf::phi3_is_called_so_where_llama_cpp_looks_for_its_tokens"),
    fault("disk not looked at", "llama_cpp/export.py", "if needed > free:", "if False:",
          "gguf::too_little_disk_is_said_before"),
    fault("control tokens as words", "llama_cpp/vocabulary.py", "Kind.CONTROL if", "Kind.NORMAL if",
          "gguf::the_vocabulary_of_every_published_form"),
    fault("the image after the question", "llama_cpp/texts.py", "{%- if part['type'] != 'text' -%}",
          "{%- if part['type'] == 'image' -%}", "gguf::the_chat_template_writes_the_kits_prompts"),
    fault("a tower of another checkpoint", "llama_cpp/exported.py", "if digest != self.digest:", "if digest is None:",
          "gguf::a_folder_that_is_no_whole_export"),
    fault("llama.cpp's absence not said", "llama_cpp/engine.py",
          'require("llama-cpp", what="The engine llama.cpp")', "pass", "gguf::a_missing_or_broken_llama_cpp_is_said"),
    fault("a broken llama.cpp not said", "llama_cpp/library.py", "except (ImportError, OSError,",
          "except (ImportError,", "gguf::a_missing_or_broken_llama_cpp_is_said"),
)  # fmt: skip
FAULTS = (
    *NETWORK,
    *GENERATION,
    *IMAGES,
    *CHECKPOINTS,
    *TOOLS,
    *EXPERIMENTS,
    *CHAT_WEB,
    *SUBJECTS,
    *SERVING,
    *LLAMA_CPP,
)


def first_failure(root: Path, tests: Iterable[str], fast: bool) -> tuple[str | None, str | None]:
    """The first of some tests that fails, or None; and what kept pytest from trying them, or None."""
    options = ["-xq", "-rfE", "--tb=no", "-p", "no:cacheprovider", *(("-m", "not slow") if fast else ())]
    with tempfile.TemporaryFile() as said:
        child = os.fork()  # which has the large libraries already
        if not child:
            os.chdir(root)
            sys.path.insert(0, str(root))
            os.environ["PYTHONPATH"] = str(root)  # for the processes that a test starts
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            code = pytest.main([*options, *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        failed = FAILED.search(said.read().decode())
    if failed and code == 1:
        return failed[1], None
    return None, None if code == 0 else f"pytest ended with {code}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--fast", action="store_true", help="only tests that are not marked slow")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="of the faults (default: all)")
    args = arguments.parse_args()
    if unknown := set(args.names) - {fault.name for fault in FAULTS}:
        arguments.error(f"there is no fault by the name of {', '.join(sorted(unknown))}")
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True  # it could outlive its source's change
    for module in PRELOADED:
        import_module(module)
    chosen = [fault for fault in FAULTS if not args.names or fault.name in args.names]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        tests = dict.fromkeys(test for fault in chosen for test in fault.tests)
        failed, stopped = first_failure(copy, tests, args.fast)
        if failed or stopped:  # what fails anyway catches nothing
            sys.exit(f"Without any fault: {failed or stopped}")
        print("| fault | caught by | seconds |\n| --- | --- | --- |", flush=True)
        missed = 0
        for fault in chosen:
            file, start = copy / fault.file, time.perf_counter()
            right = file.read_text("utf-8")
            file.write_text(right.replace(fault.old, fault.new), "utf-8")
            failed, stopped = first_failure(copy, fault.tests, args.fast)
            file.write_text(right, "utf-8")
            missed += failed is None
            caught = failed or f"NOT CAUGHT{f': {stopped}' if stopped else ''}"
            print(f"| {fault.name} | {caught} | {time.perf_counter() - start:.0f} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} faults are caught.")
    sys.exit(int(missed > 0))


if __name__ == "__main__":
    main()
