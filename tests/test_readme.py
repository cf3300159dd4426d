"""Every command of README.md runs as it stands there; sizes that fit a test are appended."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import ROOT, run_ok, run_ranks

from dataset.preparation.synthetic import main as draw_footage

NET = "--net s3d_quarter"
CLIPS = "--seq_len 8 --img_dim 32 -j 0"
TRAIN = f"{CLIPS} --batch_size 2 --epochs 1"
SMALL = {  # options appended by script
    "main_nce.py": f"{NET} {TRAIN} --moco-k 8",
    "main_coclr.py": f"{NET} {TRAIN} --moco-k 8 --topk 2",
    "main_classifier.py": f"{NET} {TRAIN}",
    "dataset.prepare": "--flow dis --short_side 40 -j 1",
    "eval/feature_linear_probe.py": "--epochs 2",
}
CLASSES = ("Orbit", "Rotate", "Zoom")


def readme_commands() -> list[list[str]]:
    """The words of every command in README's shell blocks, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def checkpoint(cwd: Path, pattern: str) -> str:
    (found,) = cwd.glob(f"log-*/{pattern}/model/epoch0.pth.tar")
    return str(found.relative_to(cwd))


def feature_folder(cwd: Path) -> Path:
    return next(cwd.glob("log-pretrain/*/model/feature"))


def as_flow(cwd: Path) -> str:
    """A copy of the features that says that it is of flow."""
    folder = Path(shutil.copytree(feature_folder(cwd), cwd / "flow"))
    provenance = folder / "ucf101_provenance.json"
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"stream": "flow"}))
    return str(folder)


def probabilities(cwd: Path) -> Path:
    return next(cwd.glob("log-linclr/*/model/*-prob-ten.json"))


PLACEHOLDERS = {  # what stands for a file in README -> how the commands before made it
    "RGB_INFONCE.pth.tar": lambda cwd: checkpoint(cwd, "infonce_*_ucf101-2clip-*"),
    "FLOW_INFONCE.pth.tar": lambda cwd: checkpoint(cwd, "infonce_*_ucf101-f-2clip-*"),
    "RGB_CYCLE1.pth.tar": lambda cwd: checkpoint(cwd, "Cycle1-FlowMining_*_ucf101-*"),
    "CKPT": lambda cwd: checkpoint(cwd, "infonce_*_ucf101-2clip-*"),
    "FINETUNED": lambda cwd: checkpoint(cwd, "*_train-ft_*"),
    "FEATURE_DIR": lambda cwd: str(feature_folder(cwd)),
    "RGB_FEATURE_DIR": lambda cwd: str(feature_folder(cwd)),
    "FLOW_FEATURE_DIR": as_flow,
    "RGB-prob-ten.json": lambda cwd: str(probabilities(cwd)),
    "FLOW-prob-ten.json": lambda cwd: str(shutil.copy(probabilities(cwd), cwd / "flow.json")),
    "CLASS/VIDEO": lambda cwd: "Orbit/v_Orbit_g01_c01",
}


@pytest.fixture
def cwd(tmp_path):
    """A working folder with the footage of the commands: 3 classes with names as UCF101's."""
    draw_footage(
        ["--out", str(tmp_path / "drawn"), "--videos", "10", "--size", "40", "--frames", "14", "-j", "1"]
    )
    for name in CLASSES:
        for folder in ("UCF-101", "VIDEOS", "HMDB51", "KINETICS/train", "KINETICS/val"):
            shutil.copytree(tmp_path / "drawn" / name, tmp_path / folder / name)
        videos = sorted(path.name for path in (tmp_path / "HMDB51" / name).iterdir())
        (tmp_path / "SPLITS").mkdir(exist_ok=True)
        (tmp_path / "SPLITS" / f"{name}_test_split1.txt").write_text(
            "".join(f"{video} {1 + (i > 6)}\n" for i, video in enumerate(videos))
        )
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_readme_runs(cwd):
    commands = readme_commands()
    assert len(commands) >= 20
    for words in commands:
        words = [PLACEHOLDERS[word](cwd) if word in PLACEHOLDERS else word for word in words]
        if (
            words[0] == "bash"
        ):  # the two set-up commands: one runs this test, the other is a night of work in small
            assert subprocess.run(["bash", "-n", ROOT / words[1]], check=False).returncode == 0
            continue
        launcher = words.pop(0)
        if launcher == "torchrun":
            words.pop(0)
        name = words[1] if words[0] == "-m" else words[0]
        words += SMALL.get(name, "").split()
        (run_ranks if launcher == "torchrun" else run_ok)(*words, cwd=cwd)
    assert all((cwd / name).exists() for name in ("results.md", "gallery.html", "recall.png", "sheet.png"))
