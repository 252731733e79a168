"""Names, hub ids and folders; the hub is a cache folder laid out as the hub lays it out."""

import shutil
from pathlib import Path

import pytest

import imp_kit
from imp_kit.checkpoints import HUB_IDS, NANO_FOLDER, at_hand, find

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUS = Path(__file__).parent.parent / "images" / "bus.png"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline. Returns a function that puts the bundled files there under a hub id."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(hub_id: str, commit: str = COMMIT) -> Path:
        repo = tmp_path / f"models--{hub_id.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for number, file in enumerate(sorted(NANO_FOLDER.iterdir())):
            blob = repo / "blobs" / f"{number:064x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
        return snapshot

    return put


@pytest.mark.parametrize(
    "name",
    ["imp-v1-3b", "IMP-V1-3B", "MILVLG/imp-v1-3b", "milvlg/Imp-v1-3b", "MILVLG/imp-v1-3b/", " imp-v1-3b "],
)
def test_names_and_hub_ids_lead_to_the_snapshot(hub, name):
    folder = hub("MILVLG/imp-v1-3b")
    snapshot = find(name)
    assert (snapshot.name, snapshot.folder, snapshot.revision) == ("MILVLG/imp-v1-3b", folder, COMMIT)


def test_a_checkpoint_in_the_cache_answers_and_tells_its_commit(hub):
    hub("MILVLG/imp-v1-3b")
    answer = imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32").ask(BUS, "What is this?")
    assert (answer.checkpoint, answer.revision) == ("MILVLG/imp-v1-3b", COMMIT)
    here = imp_kit.load("imp-nano", device="cpu", dtype="fp32").ask(BUS, "What is this?")
    assert answer.token_ids == here.token_ids


def test_a_pinned_revision(hub):
    folder = hub("MILVLG/imp-v1-3b")
    assert find("imp-v1-3b", revision=COMMIT).folder == folder
    with pytest.raises(imp_kit.CheckpointError, match="at deadbeef is not on this machine"):
        find("imp-v1-3b", revision="deadbeef")


def test_a_folder_by_its_path_with_or_without_a_slash(hub, tmp_path):
    folder = hub("MILVLG/imp-v1-3b")
    assert find(folder).revision == find(f"{folder}/").revision == COMMIT
    assert find(folder).name == "MILVLG/imp-v1-3b"
    plain = tmp_path / "my-imp"
    shutil.copytree(NANO_FOLDER, plain)
    assert (find(plain).name, find(plain).revision) == ("my-imp", None)


def test_the_bundled_checkpoint():
    assert find("imp-nano").folder == NANO_FOLDER
    assert find("Imp-Nano").revision is None


@pytest.mark.parametrize("name", [*HUB_IDS, "somebody/their-imp"])
def test_offline_with_nothing_cached(hub, name):
    with pytest.raises(imp_kit.CheckpointError, match=r"hub cannot be reached.*imp-nano") as caught:
        find(name)
    assert HUB_IDS.get(name, name) in str(caught.value)


def test_whether_the_hub_has_it(hub):
    assert not at_hand("MILVLG/imp-v1-3b")
    hub("MILVLG/imp-v1-3b")
    assert at_hand("MILVLG/imp-v1-3b")


def test_an_unknown_name_gets_the_nearest(hub):
    with pytest.raises(imp_kit.CheckpointError, match=r"Did you mean 'imp-v1\.5-3b-phi2'\?"):
        find("imp-1.5-3b-phi")


@pytest.mark.parametrize("name", ["", "  ", None, 3, ["imp-nano"]])
def test_what_is_no_name(name):
    with pytest.raises(imp_kit.CheckpointError, match="is a name, a hub id or a folder"):
        find(name)


def test_a_file_instead_of_a_folder():
    with pytest.raises(imp_kit.CheckpointError, match="is a file; give the folder"):
        find(NANO_FOLDER / "config.json")


def test_a_folder_that_is_not_there(hub, tmp_path):
    with pytest.raises(imp_kit.CheckpointError, match="no folder"):
        find(tmp_path / "nothing" / "here")


def test_half_a_download_names_the_missing_file(hub):
    folder = hub("MILVLG/imp-v1-3b")
    (folder / "config.json").unlink()
    with pytest.raises(imp_kit.CheckpointError, match=r"has no config\.json"):
        imp_kit.load("imp-v1-3b", device="cpu")
