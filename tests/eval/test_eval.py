"""The tools of the original start by their path and as modules, with the project's root alone to go by."""

import os
import subprocess
import sys

import pytest
from runs import ROOT

TOOLS = ("retrieval", "feature_linear_probe", "merge_2stream_prob", "report")


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_starts_both_ways(tool, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words, cwd in ((["-m", f"eval.{tool}"], ROOT), ([ROOT / f"eval/{tool}.py"], tmp_path)):
        done = subprocess.run(
            [sys.executable, *words, "--version"], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "CoCLR 1.0.0\n", "")
