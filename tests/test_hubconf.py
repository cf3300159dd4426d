"""torch.hub's entry points, beside packages of a user's own that have the names of ours."""

import subprocess
import sys

import torch
from runs import ROOT, environment

from backbone.select_backbone import select_backbone

USER = """
import sys
sys.path.insert(0, ".")
import utils, model.mine
import torch
network = torch.hub.load(sys.argv[1], "s3d", source="local", weights=sys.argv[2])
again = torch.hub.load(sys.argv[1], "s3d", source="local", weights=sys.argv[2])
gated = torch.hub.load(sys.argv[1], "s3dg", source="local")
assert sum(parameter.numel() for parameter in gated.parameters()) > 9e6
import utils, model.mine, utils.later
assert (utils.ANSWER, model.mine.ANSWER, utils.later.ANSWER) == (42, 43, 44)
assert not [path for path in sys.path if path == sys.argv[1]], sys.path
assert not {"backbone", "utils.checkpoint", "model.weights"} & sys.modules.keys()
assert (network.Conv_1a.conv1.weight == 1).all() and (again.Conv_1a.conv1.weight == 1).all()
assert network(torch.zeros(2, 3, 8, 32, 32)).shape == (2, 1024, 1, 1, 1)
print("fine")
"""


def test_beside_packages_of_the_same_names(tmp_path):
    for path, answer in (
        ("utils/__init__", 42),
        ("model/__init__", 0),
        ("model/mine", 43),
        ("utils/later", 44),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / f"{path}.py").write_text(f"ANSWER = {answer}\n")
    state = {
        f"encoder_q.0.{key}": torch.ones_like(v) for key, v in select_backbone("s3d")[0].state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "weights.tar")
    env = environment()
    env.pop("PYTHONPATH")
    command = [sys.executable, "-c", USER, str(ROOT), "weights.tar"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
