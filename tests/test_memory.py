"""What fits: plans against cards, the host's peak while loading, and what is said where memory ends."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import full_size
import pytest
import torch
from quick import quick

import imp_kit
from imp_kit.checkpoints import load as loading
from imp_kit.checkpoints.files import TensorInfo
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.load import fill, load_weights
from imp_kit.checkpoints.plan import LoadPlan, plan
from imp_kit.checkpoints.published import published_tensors
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.device import DTYPES, choose_device, gpu_dtype, gpu_problem, hidden_gpu, why_no_gpu
from imp_kit.imp import choose_checkpoint
from imp_kit.model.memory import free_gpu_memory, out_of_memory_errors, roomier_gpu

ROOT = Path(__file__).parents[1]
BUS, DOOR = "images/bus.png", "images/door.png"
CUDA = torch.device("cuda")
# Bytes that torch can have of a card: CUDA takes about half a GB, and a screen some of a desktop's.
CARDS = {"T4, 16 GB": 15.3e9, "8 GB": 7.9e9, "6 GB": 5.9e9}
THREE, TWO, FOUR, SMALL = "imp-v1-3b", "imp-v1.5-2b-qwen1.5", "imp-v1.5-4b-phi3", "imp-v1.5-3b-196"
SAME = "imp-v1.5-3b-phi2"  # as large as imp-v1-3b
# What fits, by the card, the dtype and whether the language model has 8 bits.
FITS = {
    ("T4, 16 GB", "16", None): {THREE, SAME, TWO, FOUR, SMALL},
    ("T4, 16 GB", "fp32", None): {THREE, SAME, TWO, SMALL},
    ("8 GB", "16", None): {THREE, SAME, TWO, SMALL},
    ("8 GB", "fp32", None): set(),
    ("6 GB", "16", None): {TWO},
    ("6 GB", "fp32", None): set(),
    ("T4, 16 GB", "16", "int8"): {THREE, SAME, TWO, FOUR, SMALL},
    ("T4, 16 GB", "fp32", "int8"): {THREE, SAME, TWO, FOUR, SMALL},
    ("8 GB", "16", "int8"): {THREE, SAME, TWO, FOUR, SMALL},
    ("8 GB", "fp32", "int8"): {THREE, SAME, TWO, FOUR, SMALL},
    ("6 GB", "16", "int8"): {THREE, SAME, TWO, FOUR, SMALL},
    ("6 GB", "fp32", "int8"): {TWO, SMALL},
}


@pytest.fixture(scope="module")
def plans() -> dict[str, LoadPlan]:
    """Of all published checkpoints, from their headers alone: the files are nowhere."""
    made = {}
    for name, entry in PUBLISHED.items():
        found = {key: TensorInfo(Path("nowhere"), shape, entry.dtype) for key, shape in published_tensors(name).items()}
        made[name] = plan(entry.config, found, name, entry.contents["generation_config.json"])
    return made


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_what_fits_on_which_card(plans, card, dtype, quantize, monkeypatch):
    """What does not fit is refused before anything is read, by a sentence with a way on."""
    monkeypatch.setattr(loading, "free_memory", lambda device: CARDS[card])
    settings = {"pack": True, "quantize": quantize}
    needed = {name: made.needed_bytes(CUDA, DTYPES[dtype], **settings) for name, made in plans.items()}
    fits = {name for name, size in needed.items() if size <= CARDS[card]}
    assert fits == FITS[card, "fp32" if dtype == "fp32" else "16", quantize]
    for name in plans.keys() - fits:
        with pytest.raises(imp_kit.MemoryLimitError) as caught:
            fill(plans[name], CUDA, DTYPES[dtype], **settings)
        kind = str(DTYPES[dtype]).removeprefix("torch.")
        assert str(caught.value) == (
            f"{name} needs {needed[name] / 1e9:.1f} GB on cuda as {kind}, but {CARDS[card] / 1e9:.1f} GB are free. "
            "End other programs that use the GPU (nvidia-smi lists them), or choose dtype='fp16' with quantize='int8', "
            "device='cpu' or imp-nano."
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_chosen_for_its_size_can_be_loaded(plans, name):
    """`load()` without a name knows the size alone, before there are headers."""
    for dtype in (torch.float16, torch.bfloat16):
        assert plans[name].needed_bytes(CUDA, dtype, pack=True) <= PUBLISHED[name].needed_bytes


@pytest.mark.parametrize(("card", "chosen"), [("T4, 16 GB", THREE), ("8 GB", THREE), ("6 GB", "imp-nano")])
def test_what_is_chosen_on_which_card(card, chosen, monkeypatch):
    monkeypatch.setattr("imp_kit.imp.free_memory", lambda device: CARDS[card])
    monkeypatch.setattr("imp_kit.imp.is_available", lambda hub_id: True)
    name, why = choose_checkpoint(CUDA)
    assert name == chosen
    assert name == THREE or why == "imp-v1-3b needs 7.5 GB of the GPU's memory and 5.9 GB are free"


@pytest.mark.parametrize(
    ("card", "capability", "dtype"),
    [
        ("P100", (6, 0), "fp16"),
        ("V100", (7, 0), "fp16"),
        ("T4", (7, 5), "fp16"),
        ("A100", (8, 0), "bf16"),
        ("L4", (8, 9), "bf16"),
        ("H100", (9, 0), "bf16"),
        ("B200", (10, 0), "bf16"),
        ("RTX 5090", (12, 0), "bf16"),
    ],
)
def test_the_dtype_of_a_card(card, capability, dtype):
    assert gpu_dtype(capability) == DTYPES[dtype]


# Two GPUs -----------------------------------------------------------------------------------------------------


def test_the_gpu_with_room_is_named(plans, monkeypatch):
    """The first one is taken; where it is too small, and another one is not, the sentence says so."""
    free = {"cuda:0": int(3e9), "cuda:1": int(15e9), "cuda:2": int(8e9)}
    for module in (loading, "imp_kit.imp"):
        path = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{path}.free_memory", lambda device: free["cuda:0"])
        monkeypatch.setattr(f"{path}.free_gpu_memory", lambda: free)
    with pytest.raises(imp_kit.MemoryLimitError, match=r"or choose device='cuda:1', which has 15\.0 GB free, dtype="):
        fill(plans[THREE], CUDA, torch.float16, pack=True)
    name, why = choose_checkpoint(CUDA)
    assert name == "imp-nano"
    assert why.endswith("3.0 GB are free; choose device='cuda:1', which has 15.0 GB free")


def test_no_gpu_is_named_where_none_has_room():
    assert roomier_gpu(4e9, {"cuda:0": int(1e9), "cuda:1": int(3.9e9)}) == ""
    assert roomier_gpu(4e9, {}) == ""
    if not torch.cuda.is_available():
        assert free_gpu_memory() == {}


# A GPU that cannot be used ---------------------------------------------------------------------------------------

# torch's own words, which tests below provoke where they can.
OLD_DRIVER = RuntimeError(
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 14.56 GiB of which 1.75 MiB is free."
)
FULL_AT_START = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
NO_DRIVER = RuntimeError(
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed"
)
HIDDEN = RuntimeError("No CUDA GPUs are available")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OLD_DRIVER, "its NVIDIA driver is too old for this torch"),
        (FULL, "its memory is full; end other programs"),
        (FULL_AT_START, "its memory is full; end other programs"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            "CUDA error: an illegal memory ac",
        ),
        (RuntimeError("CUDA unknown error - this may be due to"), "CUDA unknown error"),
        (AssertionError("Torch not compiled with CUDA enabled"), None),
        (NO_DRIVER, None),
        (HIDDEN, None),
        (None, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_why_a_gpu_cannot_be_used(error, problem, monkeypatch, recwarn):
    """One sentence, and the CPU goes on; a machine without a GPU needs no sentence."""
    found = gpu_problem(error)
    assert found is None if problem is None else found.startswith(problem)
    monkeypatch.setattr("imp_kit.device._gpu_error", lambda: error)
    assert choose_device("auto").type == ("cuda" if error is None else "cpu")
    said = [str(warning.message) for warning in recwarn]
    assert said == ([f"The GPU cannot be used: {found}. The CPU is used instead."] if problem else [])


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_named(hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert hidden_gpu(HIDDEN) == f"CUDA_VISIBLE_DEVICES is {hidden!r} and hides it"
    assert hidden_gpu(NO_DRIVER) is None
    monkeypatch.setattr("imp_kit.device._gpu_error", lambda: HIDDEN)
    assert why_no_gpu() == f" (CUDA_VISIBLE_DEVICES is {hidden!r} and hides it)"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert why_no_gpu() == ""


ASKED = """
import imp_kit
try:
    imp_kit.load("imp-nano", device="cuda")
except imp_kit.SettingError as error:
    print(error)
print(imp_kit.load().ask("images/door.png", "What color is the door?"))
"""


def test_without_a_visible_gpu_the_cpu_answers():
    """As it really comes, with torch's own error; on any machine."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    refused, chosen, answer = done.stdout.splitlines()
    assert refused.startswith("There is no device 'cuda' here (")
    assert refused.endswith("). Use device='cpu' or 'auto'.")
    assert chosen.startswith("imp-kit: imp-nano, because there is no GPU here for imp-v1-3b")
    assert answer == "The door is green."
    assert "Warning" not in done.stderr


DRIVER = """
#include <string.h>
static int start(void) { return STATUS; }
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
    *function = !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion : (void *)start;
    if (!strcmp(name, "cuGetProcAddress")) *function = (void *)cuGetProcAddress_v2;
    if (found) *found = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA, such as the newest stack's")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="needs Linux and a C compiler")
@pytest.mark.parametrize(
    "case",
    quick(
        1,
        [
            (11040, 0, "its NVIDIA driver is too old for this torch"),
            (99000, 2, "its memory is full; end other programs that use it"),
            (99000, 100, "CUDA_VISIBLE_DEVICES is '' and hides it"),
            (99000, 999, "CUDA unknown error"),
        ],
    ),
    ids=str,
)
def test_a_driver_that_torch_cannot_use(tmp_path, case):
    """torch's own errors, of a driver that is too old or fails at its start: a library in place of NVIDIA's."""
    version, status, reason = case
    (tmp_path / "driver.c").write_text(DRIVER)
    numbers = [f"-DVERSION={version}", f"-DSTATUS={status}"]
    library, source = tmp_path / "libcuda.so.1", tmp_path / "driver.c"
    subprocess.run(["cc", "-shared", "-fPIC", *numbers, "-o", library, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    refused, chosen, answer = done.stdout.splitlines()
    assert refused.startswith(f"There is no device 'cuda' here ({reason}")
    assert chosen.startswith("imp-kit: imp-nano, because there is no GPU here for imp-v1-3b")
    assert answer == "The door is green."
    assert (f"The GPU cannot be used: {reason}" in done.stderr) == (status != 100)


# The end of memory -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu")


@contextmanager
def full_at(imp, step: int, error: Exception):
    """A layer of the language model raises torch's error at a step, 0 for the prompt."""
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == step + 1:
            raise error

    hook = imp.model.decoder.layers[1].register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(
    "error",
    [FULL, FULL_AT_START, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")],
    ids=["allocator", "driver", "cuBLAS"],
)
def test_memory_ends_in_the_middle_of_an_answer(imp, step, error):
    """One sentence; the conversation is what it was before the question, and goes on."""
    chat, beside = imp.chat(DOOR), imp.chat(DOOR)
    for each in (chat, beside):
        each.say("What color is the door?")
    with full_at(imp, step, error), pytest.raises(imp_kit.MemoryLimitError) as caught:
        chat.say("Describe the image in detail.")
    assert str(caught.value).startswith("This answer needs more memory than is free (CUDA ")
    assert str(caught.value).endswith("Free some of it, or choose a smaller checkpoint, dtype='fp16' or device='cpu'.")
    assert len(chat.turns) == 1
    assert str(chat.say("Where is it?")) == str(beside.say("Where is it?"))


def test_memory_ends_in_the_middle_of_a_batch(imp):
    """Its halves have room."""
    pairs = [(DOOR, "What color is the door?"), (BUS, "What is this?"), (DOOR, "Where is the door?")]
    expected = [str(imp.ask(*pair)) for pair in pairs]
    with full_at(imp, 2, FULL):
        together = imp.ask_many(pairs, progress=False)
    assert list(map(str, together)) == expected


def test_memory_ends_while_a_checkpoint_loads(monkeypatch):
    """Another program took it since it was planned."""

    def fail(path, module, quantize):
        raise FULL

    monkeypatch.setattr(loading, "pack_linear", fail)
    with pytest.raises(imp_kit.MemoryLimitError, match=r"^Loading .* needs more memory than is free \(CUDA out of"):
        load_weights(NANO_FOLDER, torch.device("cpu"), torch.float32, pack=True)


def test_what_torch_really_raises_on_this_cpu():
    with pytest.raises(imp_kit.MemoryLimitError, match="^It needs more memory than"), out_of_memory_errors("It"):
        torch.empty(1 << 55, dtype=torch.uint8)


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="size mismatch|must match|shapes"), out_of_memory_errors("It"):
        torch.ones(2, 3) @ torch.ones(2, 3)


# Loading ---------------------------------------------------------------------------------------------------------

LARGEST = 51200 * 2560  # values of the largest tensor
LOAD = """
import json, sys
import full_size
print(json.dumps(full_size.measure_load(full_size.Path(sys.argv[1]), *sys.argv[2:])[0]))
"""


def measured(folder: Path, dtype: str, device: str) -> dict:
    """A load of 1.6 GB in a process of its own: the tensors of imp-v1-3b, with few layers, in a sparse file.

    Its zeros are read as any other bytes.
    """
    full_size.write(folder, THREE, sparse=True, layers=2)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "tools", ROOT / "tests")))
    command = [sys.executable, "-c", LOAD, str(folder), dtype, device]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the peak of a process' memory")
@pytest.mark.parametrize("dtype", quick(1, ["bf16", "fp16"]))
def test_the_host_never_holds_a_checkpoint_twice(tmp_path, dtype):
    """The weights, and the largest tensor as it is stored and as it is computed with."""
    load = measured(tmp_path, dtype, "cpu")
    assert load["file_bytes"] > 1.5e9
    assert load["peak_bytes"] < load["parameter_bytes"] + LARGEST * (2 + DTYPES[dtype].itemsize) + 100e6


@pytest.mark.gpu
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the peak of a process' memory")
def test_the_host_holds_few_tensors_while_a_gpu_is_filled(tmp_path):
    assert measured(tmp_path, "fp16", "cuda")["peak_bytes"] < 2 * 2 * LARGEST + 100e6
