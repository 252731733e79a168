"""The kit's engine and llama.cpp side by side: what is measured adds up; how fast the machine is, is no test."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import imp_kit
from imp_kit.checkpoints import load as loading
from imp_kit.checkpoints import published
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.load import check_tokenizer
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.checkpoints.published import random_bytes, write_random
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import CheckpointError, SettingError
from imp_kit.llama_cpp.export import export_gguf
from imp_kit.prompts import TEMPLATES
from imp_kit.tools import bench, doctor, engines
from imp_kit.tools.cli import main
from imp_kit.tools.engines import compare, derive, measure, measure_bandwidth, table, weights_read

TIMES = [
    {"image": 1.0, "opening": 2.0, "question": 0.5, "second question": 0.25, "token": 0.1},
    {"image": 2.0, "opening": 4.0, "question": 0.5, "second question": 0.25, "token": 0.3},
    {"image": 3.0, "opening": 5.0, "question": 0.5, "second question": 0.75, "token": 0.2},
]
ROW = {
    "threads": 2,
    "load_seconds": 3.0,
    "file_bytes": 3e9,
    "peak_bytes": None,
    "weight_bytes": 2e9,
    "opening_tokens": 800,
    "times": TIMES,
}


@pytest.fixture
def with_packages(monkeypatch):
    """The checks that come after those of the packages, also where these are missing."""
    monkeypatch.setattr("imp_kit.system.extras.has", lambda module: True)


def test_what_follows_from_times():
    row = derive(ROW, bandwidth=20e9, tokens=50)
    figures = row["figures"]
    assert figures["token"] == {"median": 0.2, "min": 0.1, "max": 0.3}
    assert row["bandwidth_share"] == pytest.approx(2e9 / 0.2 / 20e9)
    assert row["prompt_tokens_per_second"] == pytest.approx(800 / 4)
    # Of whole answers the middle one counts, not the sum of the middle parts.
    wholes = [1 + 2 + 0.5 + 49 * 0.1, 2 + 4 + 0.5 + 49 * 0.3, 3 + 5 + 0.5 + 49 * 0.2]
    assert figures["first answer"]["median"] == pytest.approx(sorted(wholes)[1])
    assert figures["second answer"]["max"] == pytest.approx(0.25 + 49 * 0.3)


def test_the_bandwidth_is_bytes_by_seconds(monkeypatch):
    monkeypatch.setattr(engines, "STREAM", 2_000_000)
    monkeypatch.setattr(engines, "measure_times", lambda call, **_: {"median": 0.5, "min": 0.25, "max": 1.0})
    expected = {"median": 4e6, "min": 2e6, "max": 8e6}
    assert measure_bandwidth() == {"sum": expected, "matrix times vector": expected}
    monkeypatch.setattr(engines, "measure_times", bench.measure_times)
    assert all(0 < each["min"] <= each["median"] <= each["max"] for each in measure_bandwidth(2).values())


def test_the_table_says_what_was_measured():
    result = {
        "checkpoint": "imp-v1-3b with random weights",
        "device_name": "a CPU",
        "threads": 2,
        "date": "today",
        "versions": {"torch": "2.13.0"},
        "repeats": 3,
        "answer_tokens": 50,
        "bandwidths": {"sum": {"median": 20e9}},
        "busy": "This machine is busy.",
        "exports": {"q8_0": {"seconds": 53.2, "peak_bytes": 450e6}},
        "rows": {"llama.cpp, q8_0": derive(ROW, 20e9, 50)},
    }
    shown = table(result)
    assert (
        "| llama.cpp, q8_0 | 200.0 ms (100.0–300.0) | 5.0 | 50% | 200 tokens/s | 2.00 s | 18.30 s (8.40–21.20) "
        in shown
    )
    assert "| llama.cpp, q8_0 | 2.0 GB | 3.0 GB | unknown | 3.0 s |" in shown
    assert "sum 20.0 GB/s" in shown
    assert "Export to q8_0: 53 s, peak of memory 450 MB." in shown
    assert shown.endswith("This machine is busy.")


def test_the_kit_is_measured_in_its_own_way():
    settings = {"device": "cpu", "dtype": "bf16", "quantize": "int8"}
    row = bench.run_alone("engines", "measure", "imp-nano", settings, 2, 4)  # here the memory has had other peaks
    assert (row["name"], len(row["times"])) == ("kit, bf16+int8", 2)
    assert row["file_bytes"] == sum(file.stat().st_size for file in NANO_FOLDER.glob("*.safetensors"))
    assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    assert all(seconds > 0 for each in row["times"] for seconds in each.values())
    imp = imp_kit.load("imp-nano", device="cpu", dtype="bf16", quantize="int8")
    assert row["weight_bytes"] == bench.Costs.of(imp.model).weight_bytes
    assert row["opening_tokens"] == imp.engine.prefix_length(imp.look(bench.noise_image(1)).image)


@pytest.mark.parametrize("name", ["imp-v1-3b", "imp-v1.5-2b-qwen1.5", "imp-v1.5-4b-phi3"])
def test_random_weights_on_disk_are_a_checkpoint_of_that_size(name, tmp_path, monkeypatch):
    """With small networks, as whole ones have gigabytes; what they need of disk is known before."""
    for size, value in {"WIDTH": 144, "MLP": 300, "LAYERS": 2}.items():
        monkeypatch.setattr(published, size, value)
    tower = {"hidden_size": 144, "intermediate_size": 300, "num_attention_heads": 2, "num_hidden_layers": 3}
    tower |= {"image_size": 384, "patch_size": 14, "layer_norm_eps": 1e-6}
    entry = PUBLISHED[name]
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 160}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "mm_hidden_size": 144}
    small |= {"mm_vision_tower": None, "vision_tower_config": tower}
    monkeypatch.setitem(
        PUBLISHED, name, replace(entry, contents={**entry.contents, "config.json": entry.config | small})
    )
    written: list[int] = []
    write_random(tmp_path, name, bench.QUESTIONS, written.append)
    file = tmp_path / "model.safetensors"
    assert 0 < file.stat().st_size - random_bytes(name) < 100_000
    assert sum(written) == random_bytes(name)
    plan, tokenizer = plan_folder(tmp_path), TextTokenizer(tmp_path)
    assert (plan.problems, list(plan.unexpected)) == ({}, [])
    check_tokenizer(tokenizer, plan)
    template = TEMPLATES[plan.model.config.family]
    for question in bench.QUESTIONS:
        words = template.ask(question, first=True)
        assert len(tokenizer.encode_pieces(words)) < 35
        assert question in tokenizer.decode(tokenizer.encode(question, begins=False))
    model = loading.fill(plan, torch.device("cpu"), torch.float32)
    for parameter_name, values in model.named_parameters():
        if values.ndim > 1:
            assert values.std() == pytest.approx(0.02, rel=0.1)
        else:
            assert (values == float(not parameter_name.endswith("bias"))).all()


def test_an_export_is_measured_and_a_token_reads_no_embeddings(tmp_path):
    exported = bench.run_alone("engines", "measure_export", "imp-nano", str(tmp_path), "q8_0")
    assert exported["seconds"] > 0
    assert exported["peak_bytes"] is None or exported["peak_bytes"] > 0
    values = bench.Costs.of(imp_kit.load("imp-nano", device="cpu", dtype="fp32").model).weight_bytes / 4
    read = weights_read(tmp_path / "imp-nano-Q8_0.gguf")
    assert read == values * 34 / 32, "q8_0 has a scale of 16 bits for 32 weights"


# With llama.cpp ---------------------------------------------------------------------------------------------


@pytest.fixture
def llama_cpp():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is built from its source, so `test` is without it")


def test_llama_cpp_is_measured_in_the_same_way(tmp_path, llama_cpp):
    export_gguf("imp-nano", tmp_path, "q8_0", progress=False)
    row = measure(str(tmp_path), {"engine": "llama.cpp", "quantize": "q8_0"}, 1, 3)
    assert (row["name"], row["threads"], len(row["times"])) == ("llama.cpp, q8_0", 1, 1)
    assert row["file_bytes"] == sum(file.stat().st_size for file in tmp_path.glob("*.gguf"))
    assert all(seconds > 0 for seconds in row["times"][0].values())
    assert row["weight_bytes"] == weights_read(tmp_path / "imp-nano-Q8_0.gguf")


@pytest.mark.slow
def test_both_engines_side_by_side(tmp_path, monkeypatch, capsys, llama_cpp):
    monkeypatch.setattr(engines, "STREAM", 2_000_000)
    monkeypatch.setattr(engines, "TOKENS", 3)
    file, folder = tmp_path / "all.json", tmp_path / "kept"
    options = f"--engine llama.cpp --dtype fp32 --quantize q8_0 --repeats 1 --folder {folder} --json {file}"
    main(f"bench --checkpoint imp-nano {options}".split())
    result = json.loads(file.read_text("utf-8"))
    assert capsys.readouterr().out == table(result) + "\n"
    assert list(result["rows"]) == ["kit, fp32", "llama.cpp, q8_0"]
    kit, other = result["rows"].values()
    assert kit["opening_tokens"] == other["opening_tokens"]
    for row in (kit, other):
        parts = row["times"][0]
        whole = parts["image"] + parts["opening"] + parts["question"] + 2 * parts["token"]
        assert row["figures"]["first answer"]["median"] == pytest.approx(whole)
        assert row["bandwidth_share"] == pytest.approx(row["weight_bytes"] / parts["token"] / result["bandwidth"])
    assert result["exports"]["q8_0"]["seconds"] > 0
    again = compare("imp-nano", dtype="fp32", types="q8_0", repeats=1, folder=folder, progress=False)
    assert again["exports"] == {}, "what is there is not written again"


# What cannot be compared ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": "q8_0,int3"}, "type is 'int3'; choose from f32"),
        ({"repeats": 0}, "repeats is 0"),
        ({"dtype": "fp8"}, "dtype 'fp8' is unknown"),
        ({"random": "imp-v9"}, "no published size 'imp-v9'"),
        ({"random": "imp-v1-3b", "checkpoint": "imp-nano"}, "not both"),
    ],
)
def test_a_wrong_setting_is_reported_before_anything_is_measured(options, message, monkeypatch, with_packages):
    for name in ("run_alone", "measure_bandwidth", "write_random"):
        monkeypatch.setattr(engines, name, None)
    with pytest.raises(SettingError, match=message):
        compare(**options, progress=False)


def test_too_little_disk_is_said_before(tmp_path, monkeypatch, with_packages):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10e9}))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for folder, name in ((tmp_path / "there", "folder"), (None, "the cache")):
        with pytest.raises(
            SettingError, match=rf"{name} is '.*', where 10.0 GB are free; the comparison takes 19.1 GB"
        ):
            compare(random="imp-v1-3b", folder=folder, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, with_packages):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"folder is '.*file/inner', where none can be made"):
        compare(folder=tmp_path / "file" / "inner", progress=False)


def test_without_llama_cpp_the_package_is_named(monkeypatch, capsys):
    for module in ("llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        main(["bench", "--engine", "llama.cpp"])
    needs = "The engine llama.cpp needs gguf and llama-cpp-python: pip install gguf llama-cpp-python."
    assert needs in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine llama.cpp --against transformers", "without --against"),
        ("--engine llama.cpp --device cuda", "compares on the CPU"),
        ("--engine onnx", "engine is 'onnx'; choose torch or llama.cpp"),
        ("--folder somewhere", "--folder is for --engine llama.cpp"),
    ],
)
def test_options_that_exclude_each_other(options, message, capsys):
    with pytest.raises(SystemExit):
        main(f"bench {options}".split())
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that end a process")
def test_a_process_that_a_signal_ends_is_an_error_with_its_name(monkeypatch):
    real = bench.subprocess.run
    monkeypatch.setattr(
        bench.subprocess, "run", lambda command, **more: real(["/bin/sh", "-c", "kill -ILL $$"], **more)
    )
    with pytest.raises(CheckpointError, match=r"Measuring folder \(q8_0\) ended with \"Illegal instruction\"") as found:
        bench.run_alone("engines", "measure_export", "folder", "q8_0")
    assert doctor.explain(f"imp_kit.errors.CheckpointError: {found.value} llama.cpp").cause.startswith("llama.cpp's")


# What load and doctor say -----------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """imp-nano counts as a large model."""
    monkeypatch.setattr(loading, "SMALL_MODEL", 0)


@pytest.mark.parametrize(
    ("faster", "dtype", "words"),
    [
        (False, "bf16", "minutes. Use engine='llama.cpp'"),
        (False, "auto", "or leave quantize out"),
        (True, "fp32", "give dtype='bf16'"),
    ],
)
def test_slow_8_bits_are_said_before_a_model_is_loaded(faster, dtype, words, large, monkeypatch):
    monkeypatch.setattr(loading, "bf16_is_faster", lambda: faster)
    monkeypatch.setattr("imp_kit.imp.fill", None)
    with pytest.warns(UserWarning, match=words), pytest.raises(TypeError):
        imp_kit.load("imp-nano", device="cpu", dtype=dtype, quantize="int8")


@pytest.mark.parametrize("small", [True, False])
def test_quick_8_bits_are_not_talked_about(small, monkeypatch, recwarn):
    monkeypatch.setattr(loading, "SMALL_MODEL", 1e9 if small else 0)
    monkeypatch.setattr(loading, "bf16_is_faster", lambda: not small)
    imp_kit.load("imp-nano", device="cpu", dtype="bf16", quantize="int8")
    imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    assert not [warning for warning in recwarn if "int8" in str(warning.message)]


@pytest.mark.parametrize("installed", [True, False])
def test_the_doctor_names_engine_and_command_for_a_cpu_that_is_slow_in_bf16(installed, monkeypatch):
    monkeypatch.setattr("imp_kit.device.bf16_is_faster", lambda: False)
    monkeypatch.setattr("imp_kit.system.extras.has", lambda module: installed)
    found = doctor._cpu()
    assert 'imp_kit.load("imp-v1-3b", engine="llama.cpp", quantize="q4_0")' in found.fix
    assert ("pip install gguf llama-cpp-python, then" in found.fix) == (not installed)
    monkeypatch.setattr("imp_kit.device.bf16_is_faster", lambda: True)
    assert 'imp_kit.load("imp-v1-3b", dtype="bf16", quantize="int8")' in doctor._cpu().fix
