"""What many tests share: good checkpoints, to be spoiled, and a client of the hub without a memory."""

import pytest
import torch
from huggingface_hub import utils
from oracle import make_oracle, write_checkpoint


def pytest_runtest_setup(item):
    """A test of CUDA is run on CUDA, or not at all."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def no_session_outlives_its_test():
    """The hub's client keeps its sessions, and in them whether it was offline when they were made."""
    yield
    (getattr(utils, "close_session", None) or utils.reset_sessions)()  # renamed in huggingface_hub 1.0


@pytest.fixture(scope="session")
def oracle():
    return make_oracle()


@pytest.fixture
def whole(oracle, tmp_path):
    """A checkpoint in one file."""
    return write_checkpoint(oracle, tmp_path / "whole")


@pytest.fixture
def sharded(oracle, tmp_path):
    """A checkpoint in three files with an index."""
    return write_checkpoint(oracle, tmp_path / "sharded", shards=3)
