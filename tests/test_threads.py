"""The threads of a small model, on a machine that other programs use, too: real programs that keep each CPU busy."""

import re
import subprocess
import sys
import time

import pytest
import torch

import imp_kit
from imp_kit import device as threads
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.system.cpu_meter import CpuMeter

BUS = "images/bus.png"


@pytest.fixture
def two_threads(monkeypatch):
    """What torch has on a machine with two CPUs, whatever this one has."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def busy():
    """As many programs as CPUs, each of which wants a whole one."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in CpuMeter().cpus]
    time.sleep(0.2)
    yield
    for program in programs:
        program.kill()
        program.wait()


def used(imp, call) -> set[int]:
    """The numbers of threads with which the language model ran."""
    seen = set()
    hook = imp.model.decoder.layers[0].register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    call()
    hook.remove()
    return seen


def questions(count: int) -> list:
    return [(BUS, f"Where is bus {number}?") for number in range(count)]


def test_a_question_of_a_small_model_is_answered_by_one_thread(two_threads):
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    assert used(imp, lambda: imp.ask(BUS, "Where is the bus?", max_new_tokens=3)) == {1}
    assert torch.get_num_threads() == 2


def test_a_stream_leaves_its_readers_threads_alone(two_threads):
    stream = imp_kit.load(NANO_FOLDER, device="cpu").look(BUS).stream("Where is the bus?")
    assert {torch.get_num_threads() for _ in stream} == {2}


@pytest.mark.parametrize("rows", [2, 9])
def test_a_batch_takes_one_thread_where_other_programs_use_all_cpus(two_threads, busy, rows):
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    ask = lambda: imp.ask_many(questions(rows), batch_size=rows, progress=False, max_new_tokens=3)  # noqa: E731
    assert used(imp, ask) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("free", [0.0, 0.7, 1.0, 1.6, 1.8, 2.0, 8.0])
def test_a_batch_takes_the_threads_that_are_free_and_at_least_one(two_threads, free):
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    meter = imp.engine.threads._meter
    meter.cpus = list(range(8))
    # As if measured later than now, so that it is not measured again.
    meter._others, meter._before = 8 - free, (time.perf_counter() + 60, 0.0, 0.0)
    assert imp.engine.threads.count(8) == (2 if free >= 1.75 else 1)


def test_the_number_that_torch_has_is_not_set_again(two_threads, monkeypatch):
    """Setting it costs time at each token."""
    monkeypatch.setattr(threads, "SMALL_MODEL", 0)
    imp, calls = imp_kit.load(NANO_FOLDER, device="cpu"), []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    imp.ask(BUS, "Where is the bus?", max_new_tokens=3)
    assert calls == []


def test_an_error_in_between_gives_the_threads_back(two_threads):
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    with pytest.raises(ZeroDivisionError), imp.engine.threads.use(1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


def test_a_number_of_threads_that_was_chosen_is_left_alone(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    assert used(imp, lambda: imp.ask(BUS, "Where is the bus?", max_new_tokens=3)) == {2}


def test_a_large_model_has_torchs_threads(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "SMALL_MODEL", 0)
    imp = imp_kit.load(NANO_FOLDER, device="cpu")
    assert used(imp, lambda: imp.ask(BUS, "Where is the bus?", max_new_tokens=3)) == {2}


def test_other_programs_are_measured(busy):
    meter = CpuMeter()
    count = len(meter.cpus)
    assert 0.6 * count <= meter.others() <= count
    said = re.fullmatch(
        rf"This machine is busy: other programs use (\d+\.\d) of {count} CPUs, so all takes longer\.", meter.warning()
    )
    assert 0.6 * count <= float(said[1]) <= count


def test_ones_own_work_is_not_counted(busy):
    """What this process took, others did not; where they would take all, it would show."""

    def is_left_out() -> bool:
        # Looked at before and after, so that a pause between two lines here makes the share smaller, never larger.
        start, own = time.perf_counter(), time.process_time()
        meter = CpuMeter()
        while time.perf_counter() < start + 0.6:
            sum(range(1000))
        others = meter.others()
        taken = (time.process_time() - own) / (time.perf_counter() - start)
        return others <= len(meter.cpus) - taken + 0.1

    assert any(is_left_out() for _ in range(3))  # a pause within the meter makes one measure wrong
