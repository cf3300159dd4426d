"""The GPU's benchmark, small on a CPU: every part gives rows, and nothing fails or is left out in silence."""

import json
import subprocess
import sys

import pytest
from runs import environment

from benchmarks import gpu


@pytest.mark.slow
def test_every_part_runs_small_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "600"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict]] = {}
    for line in (tmp_path / "results.gpu.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("part"), []).append(row)
    assert list(found) == [*gpu.PARTS, "defaults"], done.stderr
    results = {row["result"] for rows in found.values() for row in rows if "result" in row}
    assert results == {"needs a GPU", "needs two GPUs, 0 are visible"}, done.stderr
    assert found["conformance"][0]["largest difference"] < 1e-3
    assert found["losses"][0]["loss off by at most"] == 0
    assert [row["batch"] for row in found["steps"]] == [4, 8]
    assert found["steps"][0]["TFLOP/s"] > 0
    assert [row["steps"] for row in found["learning"]] == [1]
    assert found["data"][0]["cores that the step needs"] > 0
    assert found["resume"] == [{"steps": 2, "losses off when repeated": 0, "when resumed": 0}]
    assert found["evaluation"][0]["features off by"] == 0
    text = (tmp_path / "results.gpu.md").read_text()
    assert text == done.stdout
    assert all(f"**{name}**" in text for name in found)


def test_a_part_that_fails_or_takes_too_long_is_one_row(tmp_path):
    assert list(gpu.run_part("conformance", "cpu", tmp_path, 0)) == [{"result": "cut after 0 s"}]
    (row,) = gpu.run_part("nothing", "cpu", tmp_path, 600)
    assert row["result"].startswith("failed: KeyError: 'nothing'")


@pytest.mark.parametrize(
    ("recall", "advice"),
    [(50.0, "yes"), (40.0, "no: R@1 40.0 against 52.0"), (None, "unknown: whether it learns")],
)
def test_what_is_quicker_is_recommended_unless_it_learns_less(recall, advice):
    rates = {"fp32": 100, "tf32": 200, "bf16": 300, "tf32 channels-last": 190, "bf16 channels-last": 600}
    rows = [{"method": "infonce", "step": name, "batch": 32, "clips/s": rate} for name, rate in rates.items()]
    rows.append({"method": "infonce", "step": "bf16", "batch": 64, "clips/s": 1})
    learnt = [{"precision": "fp32", "R@1": 52.0}]
    if recall is not None:
        learnt.append({"precision": "bf16", "R@1": recall})
    found = {row["option"]: row for row in gpu.recommended({"steps": rows, "learning": learnt})}
    assert found["TF32"]["recommended"] == "yes"
    assert found["TF32"]["times as fast"] == 2
    assert found["--precision bf16"]["recommended"].startswith(advice)
    assert found["--channels_last in fp32"]["recommended"] == "no"
    assert found["--channels_last in bf16"]["times as fast"] == 2
    assert found["--compile"] == {
        "option": "--compile",
        "times as fast": "not measured",
        "recommended": "unknown",
    }


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "no GPU is visible; --device cpu" in capsys.readouterr().err
