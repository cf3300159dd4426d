"""Downloads from a server on loopback: once, whole, and only when allowed. torch.hub's entry points."""

import http.server
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from backbone.select_backbone import select_backbone
from model.released import RELEASED, fetch
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by name; ``promised`` more bytes are announced than sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.promised = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("COCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COCLR_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/coclr/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


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


def test_url_and_path(server, tmp_path):
    server.files = {"a.tar": checkpoint()}
    base = f"http://127.0.0.1:{server.server_port}"
    first, other = fetch(f"{base}/one/a.tar"), fetch(f"{base}/two/a.tar")
    assert first != other  # files of the same name from elsewhere do not mix
    assert first.name == other.name == "a.tar"
    assert fetch("some/path.tar") == Path("some/path.tar")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("content", "promised", "message"),
    [
        (checkpoint()[:2000], 0, "not a readable checkpoint"),
        (checkpoint(), 500, "it ended after .* of"),
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


def test_several_that_ask_at_once_download_once(server):
    server.files = {RELEASED["CoCLR-ucf101-rgb"]: checkpoint()}
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, ["CoCLR-ucf101-rgb"] * 4))
    assert len(paths) == 1
    assert len(server.requests) == 1


def test_torch_hub_loads_released_weights(server):
    state = {f"encoder_q.0.{key}": value + 1 for key, value in select_backbone("s3d")[0].state_dict().items()}
    server.files = {RELEASED["CoCLR-ucf101-rgb"]: checkpoint(state_dict=state)}
    network = torch.hub.load(str(ROOT), "s3d", source="local", weights="CoCLR-ucf101-rgb")
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[f"encoder_q.0.{key}"])
    assert isinstance(torch.hub.load(str(ROOT), "r50", source="local"), torch.nn.Module)
