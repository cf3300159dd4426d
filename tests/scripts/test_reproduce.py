import shlex
import signal
from pathlib import Path

import pytest
from databases import make_dataset
from runs import run

import main_classifier
from scripts import reproduce

RECORDED = {  # options by file
    "ucf101": "ucf101",
    "k400": "k400 8 --data_root /data --rgb_lmdb a.lmdb --workers 4 --seed 3 --baselines all",
    "mine": "mine 1 --seq_len 8 --baselines all --cycles 1 --probe features --nce_epochs 8 --nce_schedule=6 "
    "--coclr_epochs 6 --coclr_schedule='4 5' --pretrain '--moco-k 64 --lr 4e-4' --cotrain '--hide_self 0' "
    "--eval='ucf101 mine'",
}
TINY = ["tiny", "1", "--nce_epochs", "1", "--coclr_epochs", "1", "--nce_schedule=", "--coclr_schedule="]
TINY += ["--pretrain", "--moco-k 4 --moco-dim 16", "--cotrain", "--topk 1"]
TINY += ["--net", "s3d_quarter", "--seq_len", "8", "--img_dim", "32", "-j", "0", "--batch_size", "4"]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that the recipe runs on 9 training and 3 test videos, each in a fork."""
    done = []

    def execute(together: dict[str, list[str]]) -> int:
        for words in together.values():
            done.append(" ".join(words))
            ended = run(*words, cwd=tmp_path, timeout=600)
            assert ended.returncode == 0, ended.stderr
        return 0

    make_dataset(tmp_path / "data/tiny", per_class=4, frames=9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "execute", execute)
    return done


def lines(text: str) -> list[list[str]]:
    """The words of each line."""
    return [shlex.split(line) for line in text.splitlines()]


def printed(words: list[str], capsys) -> str:
    """What a dry run prints."""
    reproduce.main([*words, "--dry-run"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", RECORDED)
def test_dry_run_prints_the_recorded_commands(name, cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    recorded = Path(__file__).parent / "reproduce" / f"{name}.txt"
    assert lines(printed(shlex.split(RECORDED[name]), capsys)) == lines(recorded.read_text())


def test_baselines_may_be_untrained_networks_alone(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    shown = printed(["ucf101", "--baselines", "random"], capsys)
    assert shown.count("--test random") == 2
    assert shown.count("main_nce.py") == 4
    assert shown.count("--lr 0 --epochs 3") == 2
    assert shown.count("main_coclr.py") == 4
    assert "ubernce" not in shown


@pytest.mark.parametrize("dataset", ["mine", "k400"])
def test_a_small_trial_has_one_process_whose_batch_its_queue_holds(dataset, cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    assert "torch.distributed.run" not in printed([dataset, "--small"], capsys)


def test_defaults_of_a_small_trial_may_be_given_again(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    reproduce.main(["mine", "1", "--small", "--cycles", "2", "--train_flow", "--lr 1e-5", "--dry_run"])
    commands = [line for line in capsys.readouterr().out.splitlines() if "main_coclr.py" in line]
    assert len(commands) == 4
    assert all("--net s3d_quarter" in command for command in commands)
    assert all("--bn_bias 1 --flow_colour 0" in command for command in commands)
    assert all(command.endswith("--hide_self 0 --epochs 100 --resume auto") for command in commands[::2])
    assert all(command.endswith("--lr 1e-5 --epochs 100 --resume auto") for command in commands[1::2])


@pytest.mark.slow
def test_everything_from_pretraining_to_the_table_and_what_is_done_is_skipped(commands):
    recipe = [*TINY, "--cycles", "1", "--seed", "2", "--probe", "features"]
    reproduce.main(recipe)
    assert len(commands) == 4 + 4 * 2 + 3  # trainings; tests and probes; two-stream, pictures, table
    assert all("--seed 2" in command for command in commands if command.startswith("main_"))
    table = Path("results.md").read_text()
    assert all(name in table for name in ("InfoNCE", "CoCLR", "Retrieval", "Classification"))
    assert all(Path(name).is_file() for name in ("results.png", "gallery-tiny.html", "recall-tiny.png"))

    commands.clear()
    (last,) = Path().glob("log-pretrain/seed2_Cycle1-RGBMining_*/model")
    (last / "epoch0.pth.tar").unlink()
    reproduce.main(recipe)
    done_again = [command.split()[0] for command in commands]
    quick = ["main_classifier.py"] * 4 + ["eval/feature_linear_probe.py"] * 4
    quick += ["eval/merge_2stream_prob.py", "eval/retrieval.py", "eval/report.py"]
    assert done_again == ["main_coclr.py", *quick]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getppid(), signal.SIGINT); time.sleep(0.2); raise SystemExit(130)", 130),  # as it saves
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 143),
    ],
)
def test_status_of_a_command_and_signals_while_it_runs(code, status):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert reproduce.execute({"": ["-c", f"import os, signal, time; {code}"]}) == status
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_several_commands_at_once_say_whose_line_it_is(cwd, monkeypatch, capfd):
    monkeypatch.chdir(cwd)
    meet = (
        "import pathlib, sys, time\n"
        "mine, other = sys.argv[1:]\n"
        "pathlib.Path(mine).touch()\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.01)\n"
        "print('out'); print('err', file=sys.stderr)"
    )
    commands = {"RGB": ["-c", meet, "rgb", "flow"], "Flow": ["-c", meet, "flow", "rgb"]}
    assert reproduce.execute(commands) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == ["Flow: err", "Flow: out", "RGB: err", "RGB: out"]


def test_where_one_of_several_fails_the_others_are_ended():
    sleeps = "import time; time.sleep(60)"
    assert reproduce.execute({"RGB": ["-c", sleeps], "Flow": ["-c", "raise SystemExit(2)"]}) == 2


@pytest.mark.parametrize(
    ("size", "lengths"), [(1, [1] * 10), (2, [2, 2, 2, 1, 1, 1, 1]), (9, [6, 1, 1, 1, 1])]
)
def test_trainings_that_need_no_other_are_run_at_once(size, lengths, monkeypatch):
    together = []
    monkeypatch.setattr(reproduce.Recipe, "run", run_nothing(together))
    args, common = reproduce.parse_arguments(["mine", "--baselines", "all", "--at_once", str(size)])
    reproduce.Recipe(args, common).pretrain()
    assert list(map(len, together)) == lengths


def run_nothing(together):
    def run(self, *commands):
        together.append(commands)
        self.left |= {command.title: command.leaves for command in commands}

    return run


def test_runs_of_other_settings_are_not_taken_for_these(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    done = "log-pretrain/infonce_k4_tiny-2clip-32_s3d_quarter_bs4_lr0.001_seq2_len8_ds1/model/epoch0.pth.tar"
    for other in (
        done.replace("k4", "k8"),
        done.replace("s3d_quarter", "r50"),
        done.replace("tiny", "a_tiny"),
    ):
        (cwd / other).parent.mkdir(parents=True)
        (cwd / other).touch()
    assert "done" not in printed(TINY, capsys)
    (cwd / done).parent.mkdir(parents=True)
    (cwd / done).touch()
    shown = printed(TINY, capsys)
    assert shown.count(f"done: {done}") == 1
    assert f"--pretrain {done}" in shown


def test_several_runs_that_may_be_meant_are_refused(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    (probe,) = (words for title, words in probes_of(printed(TINY, capsys)) if "InfoNCE-RGB on" in title)
    name = main_classifier.run_name(main_classifier.make_parser().parse_args(probe), "")
    for start in ("epoch0-aaaaaa", "epoch0-bbbbbb"):
        model = cwd / f"log-linclr/{name}{start}/model"
        model.mkdir(parents=True)
        (model / "epoch99.pth.tar").touch()
    with pytest.raises(SystemExit, match="2"):
        printed(TINY, capsys)
    assert "all match; move the runs you do not mean away" in capsys.readouterr().err


def probes_of(shown: str) -> list[tuple[str, list[str]]]:
    """Title and options of each linear probe that a dry run shows."""
    shown = [line for line in shown.splitlines() if line.startswith(("==", "+"))]
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return [(title, shlex.split(words)[3:]) for title, words in pairs if title.startswith("== linear probe")]


@pytest.mark.parametrize(
    "words",
    ["--batch_size 16", "--batch_size 16 -j 4", "--cycles 2 --img_dim 64"],
)
def test_values_of_other_options_are_not_numbers_of_processes(words):
    args, common = reproduce.parse_arguments(["mine", *words.split()])
    assert args.nproc is None
    assert set(words.split()) >= set(common)
    args, _ = reproduce.parse_arguments(["mine", "3", *words.split()])
    assert args.nproc == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mine --small 1", "1: what may follow DATASET is NPROC"),
        ("mine 0", "0: what may follow DATASET is NPROC"),
        ("mine many", "many: what may follow DATASET"),
        ("mine 1 2", "2: what may follow DATASET"),
        ("mine 1 --epochs 3", "--epochs: say --nce_epochs"),
        ("mine 1 --prefix other", "--prefix: the recipe gives it"),
        ("mine 1 --lr high", "argument --lr: invalid"),
    ],
)
def test_what_the_recipe_cannot_take_is_refused(words, message, cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    with pytest.raises(SystemExit, match="2"):
        reproduce.main([*words.split(), "--dry_run"])
    assert message in capsys.readouterr().err


def rates(settings, capsys):
    """The rate of each training of one cycle, by its title."""
    trainings = lines(printed(["mine", "--cycles", "1", *settings], capsys))[:8]
    found = {}
    for (_, title), words in zip(trainings[::2], trainings[1::2], strict=True):
        found[title] = words[len(words) - words[::-1].index("--lr")]
    return found


def test_options_of_flow_come_last_in_each_training_of_flow_and_in_no_other(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    settings = ["--pretrain=--lr 2e-4", "--cotrain=--lr 1e-4", "--train_flow=--lr 5e-5"]
    assert rates(settings, capsys) == {
        "InfoNCE-RGB": "2e-4",
        "InfoNCE-Flow": "5e-5",
        "Cycle1-FlowMining": "1e-4",
        "Cycle1-RGBMining": "5e-5",
    }


def test_an_option_of_all_commands_is_given_in_place_of_a_default_of_small(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    assert set(rates(["--small"], capsys).values()) == {"1e-4", "5e-5"}
    assert set(rates(["--small", "--lr", "3e-4"], capsys).values()) == {"3e-4", "5e-5"}


def test_options_of_co_training_are_put_behind_those_of_small():
    args, _ = reproduce.parse_arguments(["mine", "--small", "--cotrain=--topk 15"])
    assert args.cotrain == [*reproduce.SMALL["cotrain"], "--topk", "15"]
    assert args.pretrain == reproduce.SMALL["pretrain"]
