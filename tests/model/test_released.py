"""Downloads from a server on loopback: once, whole, and only when allowed. torch.hub's entry points."""

import io
from pathlib import Path

import pytest
import torch
from file_server import serving

from backbone.select_backbone import select_backbone
from eval.features import Features, find_folder, save_features
from model.released import RELEASED, fetch
from model.weights import digest, load_encoder
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("COCLR_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        monkeypatch.setenv("COCLR_WEIGHTS_URL", f"{server.address}/coclr/")
        yield server


def checkpoint(**entries) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"encoder_q.0.x": torch.arange(1000.0)}, "epoch": 1, **entries}, file)
    return file.getvalue()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_released_name_is_downloaded_once(server, tmp_path):
    server.files = {file: checkpoint() for file in RELEASED.values()}
    for name, file in RELEASED.items():
        path = fetch(name)
        assert path == tmp_path / "cache" / name / file
        assert path.read_bytes() == server.files[file]
        assert fetch(name) == path
        assert fetch(name, offline=True) == path
    assert server.requests == list(RELEASED.values())
    assert files_in(tmp_path / "cache") == sorted(RELEASED.values())


def test_pretraining_starts_from_a_released_name(server, tmp_path):
    encoder = torch.nn.Linear(2, 1)
    state = {f"encoder_q.{name}": torch.full_like(value, 3) for name, value in encoder.state_dict().items()}
    server.files = {RELEASED["InfoNCE-ucf101-rgb"]: checkpoint(state_dict=state, epoch=399)}
    assert load_encoder(encoder, "InfoNCE-ucf101-rgb") == 399
    assert encoder.bias.item() == 3


def test_features_beside_a_released_file_are_found_by_its_name(server, tmp_path):
    server.files = {RELEASED["CoCLR-ucf101-rgb"]: checkpoint()}
    folder = fetch("CoCLR-ucf101-rgb").parent / "feature"
    part = Features(torch.eye(2), torch.zeros(2, dtype=torch.long), ["A/a", "A/b"])
    save_features(folder, "tiny", {"test": part}, {"sha256": digest(fetch("CoCLR-ucf101-rgb"))})
    assert find_folder("CoCLR-ucf101-rgb", "feature", "tiny") == folder


def test_url_and_path(server, tmp_path):
    server.files = {"a.tar": checkpoint()}
    first, other = fetch(f"{server.address}/one/a.tar"), fetch(f"{server.address}/two/a.tar")
    assert first != other  # files of the same name from elsewhere do not mix
    assert first.name == other.name == "a.tar"
    assert fetch("some/path.tar") == Path("some/path.tar")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("content", "promised", "message"),
    [
        (checkpoint()[:2000], 500, "not a readable checkpoint"),
        (b"<html>moved</html>", 0, "not a readable checkpoint"),
        (None, 0, "404"),
    ],
)
def test_partial_or_wrong_file_is_never_taken_for_whole(server, tmp_path, content, promised, message):
    server.promised = promised
    if content is not None:
        server.files[RELEASED["CoCLR-k400-rgb"]] = content
    with pytest.raises(UserError, match=message) as error:
        fetch("CoCLR-k400-rgb")
    assert "\n" not in str(error.value)
    assert files_in(tmp_path / "cache") == []
    server.promised, server.files = 0, {RELEASED["CoCLR-k400-rgb"]: checkpoint()}
    assert fetch("CoCLR-k400-rgb").is_file()


def test_offline_says_where_to_put_the_file(server, tmp_path):
    with pytest.raises(
        UserError, match=r"--offline: CoCLR-k400-flow.*put .*CoCLR-k400-flow-128-s3d.pth.tar at"
    ):
        fetch("CoCLR-k400-flow", offline=True)
    assert server.requests == []
    assert not (tmp_path / "cache").exists()


def test_unreachable_server(server, monkeypatch):
    monkeypatch.setenv("COCLR_WEIGHTS_URL", "http://127.0.0.1:1/")
    with pytest.raises(UserError, match=r"cannot download .*refused"):
        fetch("CoCLR-k400-flow")


def test_torch_hub_loads_released_weights(server):
    state = {f"encoder_q.0.{key}": value + 1 for key, value in select_backbone("s3d")[0].state_dict().items()}
    server.files = {RELEASED["CoCLR-ucf101-rgb"]: checkpoint(state_dict=state)}
    network = torch.hub.load(str(ROOT), "s3d", source="local", weights="CoCLR-ucf101-rgb")
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[f"encoder_q.0.{key}"])
    assert isinstance(torch.hub.load(str(ROOT), "r50", source="local"), torch.nn.Module)
