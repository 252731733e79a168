"""Good checkpoints, to be spoiled by the tests of bad ones."""

import pytest
from oracle import make_oracle, write_checkpoint


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
