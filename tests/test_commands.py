"""Every command: --help, --version, exit status, one line for what does not exist, quiet in pipes."""

import re
import subprocess
import sys

import pytest
from runs import ROOT, environment, refused, run

COMMANDS = {  # words that name something which is not there
    "main_nce.py": ("--dataset", "nowhere-2clip"),
    "main_coclr.py": ("--dataset", "nowhere-2stream-2clip"),
    "main_classifier.py": ("--test", "nowhere", "--retrieval"),
    "eval/retrieval.py": ("--test", "nowhere"),
    "eval/feature_linear_probe.py": ("--test", "nowhere"),
    "eval/merge_2stream_prob.py": ("--prob1", "nowhere", "--prob2", "nowhere"),
    "eval/report.py": ("nowhere",),
    "-m eval.embed": ("nowhere", "--weights", "nowhere"),
    "-m dataset.prepare": ("mine", "--videos", "nowhere", "--out", "out"),
    "-m dataset.verify": ("nowhere",),
    "-m dataset.show": ("nowhere", "A/a", "-o", "a.png"),
    "-m benchmarks.evaluate": ("--dataset", "nowhere"),
    "-m benchmarks.gpu": ("--parts", "nowhere"),
    "-m benchmarks.loader": ("--video", "nowhere"),
    "-m benchmarks.prepare": ("--videos", "nowhere"),
    "-m benchmarks.step": ("--methods", "nowhere"),
    "-m scripts.reproduce": ("nowhere", "1"),
    "-m dataset.synthetic": ("--out", "nowhere/nowhere", "--videos", "1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version(command, tmp_path):
    done = run(*command.split(), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    usage, description, *sections = done.stdout.split("\n\n")
    assert re.match(rf"usage: (python )?{re.escape(command.split('/')[-1])} \[options\]", usage)
    assert description.strip().endswith(".")
    assert not re.search(r"\(default: (None|False|)\)|\[\d|True", done.stdout)
    for option in re.findall(r"^  (-.*)", "\n\n".join(sections), re.MULTILINE):
        explained = re.search(
            rf"^  {re.escape(option)}\n +\w|  \S", f"  {option}\n" + done.stdout, re.MULTILINE
        )
        assert explained, option
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = run(*command.split(), "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "CoCLR 1.0.0\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_there_is_one_line_and_status_2(command, tmp_path):
    refused("nowhere|--videos 1", *command.split(), *COMMANDS[command], cwd=tmp_path)
    refused("--nonsense|required", *command.split(), "--nonsense", cwd=tmp_path)


@pytest.mark.parametrize("command", ["reproduce.sh", "reproduce.sh ucf101 --epochs 3"])
def test_scripts_refuse_with_status_2(command, tmp_path):
    script, *words = command.split()
    done = subprocess.run(
        ["bash", ROOT / "scripts" / script, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr


def test_reader_that_leaves_early_and_no_progress_bar_in_a_file(tiny):
    command = f"{sys.executable} -m dataset.verify data/tiny"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        cwd=tiny,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (141, "")
    done = run(*command.split()[1:], cwd=tiny)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing broken" in done.stdout
