"""The paper's recipe, from databases to the table.

InfoNCE of RGB and of flow, then cycles of co-training, each run from the last checkpoint of its predecessors;
then retrieval and linear probe of each, two-stream, the table, its chart and a gallery of what was retrieved.
What is done is skipped and what was interrupted goes on, so the same command can be given again at any time.
NPROC processes per run (default: the paper's GPUs). Options that are not of this program go to every command
that trains or tests.
"""

import glob
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from backbone.select_backbone import NETWORKS
from dataset.catalogue import STREAMS
from utils.errors import UserError, one_line_errors
from utils.options import Parser, non_negative_int, positive_int

ROOT = Path(__file__).resolve().parent.parent
PAPER = {  # defaults by dataset; others are treated as UCF101
    "ucf101": {
        "nce_epochs": 300,
        "nce_schedule": ["250", "280"],
        "nce_gpus": 2,
        "coclr_epochs": 100,
        "coclr_schedule": ["80"],
        "coclr_gpus": 2,
        "queue": 2048,
    },
    "k400": {
        "nce_epochs": 300,
        "nce_schedule": ["250", "280"],
        "nce_gpus": 4,
        "coclr_epochs": 50,
        "coclr_schedule": ["40"],
        "coclr_gpus": 2,
        "queue": 16384,
        "eval": ["ucf101", "hmdb51"],
    },
}
SETTINGS = {  # of the recipe: options, and in capitals environment variables
    "net": {"choices": tuple(NETWORKS), "default": "s3d", "help": "network of all runs"},
    "cycles": {"type": non_negative_int, "default": 2, "help": "cycles of co-training"},
    "baselines": {
        "choices": ["random", "all", "1"],
        "help": "random: also test random weights; all, or 1: also train InfoNCE and UberNCE on RGB for as "
        "many epochs as CoCLR in all",
    },
    "nce_epochs": {"type": positive_int, "help": "epochs of InfoNCE"},
    "nce_schedule": {"type": str.split, "help": "its epochs that drop the rate: '250 280'"},
    "coclr_epochs": {"type": positive_int, "help": "epochs of either network in a cycle of co-training"},
    "coclr_schedule": {"type": str.split, "help": "its epochs that drop the rate"},
    "pretrain": {
        "type": str.split,
        "default": [],
        "help": "options of InfoNCE and co-training: '--moco_k 64 --lr 4e-4'",
    },
    "train_flow": {"type": str.split, "default": [], "help": "options of all pretraining of flow alone"},
    "cotrain": {"type": str.split, "default": [], "help": "options of co-training alone"},
    "evaluate": {"type": str.split, "default": [], "help": "options of tests and linear probes"},
    "eval": {"type": str.split, "help": "datasets to test on: 'ucf101 hmdb51'"},
    "probe": {
        "choices": ["features"],
        "help": "features: a linear layer on saved features, minutes instead of hours",
    },
    "seed": {"type": non_negative_int, "help": "seed; the runs of each have names of their own"},
    "at_once": {
        "type": positive_int,
        "default": 1,
        "help": "trainings at the same time, on the same processors or GPUs, where none needs another, as "
        "InfoNCE of RGB and of flow",
    },
}
RGB, FLOW = (STREAMS[stream].ending for stream in ("rgb", "flow"))  # of dataset names
CLIP = ("--seq_len", "32", "--ds", "1")
RANDOM = {"Random-RGB": RGB, "Random-Flow": FLOW}
PROBE_EPOCHS = 100
PROBE = ("--schedule", "60", "80", "--optim", "sgd", "--lr", "1e-1", "--wd", "1e-3", "--final_bn")


@dataclass(frozen=True)
class Training:
    """A run, which hands on its last checkpoint.

    ending: of the names of datasets that its network is tested on. folder: pattern of its run folder.
    command: script and options; among these the title of another training stands for the checkpoint that it
    handed on.
    """

    title: str
    ending: str
    folder: str
    epochs: int
    gpus: int
    command: tuple[str, ...]

    @property
    def last_checkpoint(self) -> str:
        """Pattern of its path."""
        return f"{self.folder}/model/epoch{self.epochs - 1}.pth.tar"

    def find_checkpoint(self) -> str | None:
        """Path of the last checkpoint, if there is one; raises UserError where several runs may be meant."""
        found = sorted(glob.glob(self.last_checkpoint))
        if len(found) > 1:
            raise UserError(f"{' '.join(found)} all match; move the runs you do not mean away")
        return found[0] if found else None


def parse_arguments(words: list[str]) -> tuple[Namespace, tuple[str, ...]]:
    """The settings of the recipe, and the options of every command."""
    parser = Parser(" ".join(__doc__.split()), "DATASET [NPROC]")
    parser.add_argument("dataset", help="name of a dataset")
    parser.add_argument("nproc", type=positive_int, nargs="?", help="processes of every run")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    group = parser.add_argument_group("recipe (or as environment variables: CYCLES, BASELINES, ...)")
    for name, facts in SETTINGS.items():
        group.add_argument(f"--{name}", **facts)

    given = {name: os.environ.get(name.upper()) for name in SETTINGS}
    words = [f"--{name}={value}" for name, value in given.items() if value] + words
    dataset = parser.parse_known_args(words)[0].dataset
    parser.set_defaults(**{"eval": [dataset]} | PAPER.get(dataset, PAPER["ucf101"]))
    args, common = parser.parse_known_args(words)
    for word in common:
        if word.startswith(("--epochs", "--schedule")):
            parser.error(f"{word}: say --nce_epochs, --nce_schedule, --coclr_epochs or --coclr_schedule")
    if common and not common[0].startswith("-"):
        parser.error(f"{common[0]} is no option; the number of processes comes after the dataset")
    if args.seed is not None:
        common += ["--seed", str(args.seed)]
    return args, tuple(common)


def run_name(args: Namespace, name: str) -> str:
    """The start of a run's name, of its seed's own."""
    return name if args.seed is None else f"seed{args.seed}_{name}"


def list_trainings(args: Namespace, common: tuple[str, ...]) -> tuple[list[Training], tuple[str, str]]:
    """The table of what is pretrained, in order, and the titles of the last RGB and flow networks."""

    of_stream = {RGB: [], FLOW: args.train_flow}

    def nce(title: str, model: str, ending: str, epochs: int, schedule: list[str], prefix: str) -> Training:
        dataset = f"{args.dataset}{ending}-2clip"
        prefix = run_name(args, prefix)
        command = ["main_nce.py", "--net", args.net, "--model", model, "--moco-k", str(args.queue)]
        command += ["--dataset", dataset, *CLIP, "--batch_size", "32", "--schedule", *schedule, "-j", "16"]
        command += ["--name_prefix", prefix] if prefix else []
        command += [*common, *args.pretrain, *of_stream[ending]]
        folder = f"log-pretrain/{prefix}{model}_k*_{dataset}-*"
        return Training(title, ending, folder, epochs, args.nce_gpus, tuple(command))

    def coclr(title: str, ending: str, own: str, other: str) -> Training:
        dataset = f"{args.dataset}-2stream-2clip"
        prefix = run_name(args, f"{title}_")
        command = ["main_coclr.py", "--net", args.net, "--topk", "5", "--moco-k", str(args.queue)]
        command += ["--reverse"] if ending == FLOW else []
        command += ["--dataset", dataset, *CLIP, "--batch_size", "32", "--schedule", *args.coclr_schedule]
        command += ["--name_prefix", prefix, "-j", "8", "--pretrain", own, other]
        command += [*common, *args.pretrain, *args.cotrain, *of_stream[ending]]
        folder = f"log-pretrain/{prefix}coclr-*_{dataset}-*"
        return Training(title, ending, folder, args.coclr_epochs, args.coclr_gpus, tuple(command))

    rgb, flow = "InfoNCE-RGB", "InfoNCE-Flow"
    trainings = [
        nce(rgb, "infonce", RGB, args.nce_epochs, args.nce_schedule, ""),
        nce(flow, "infonce", FLOW, args.nce_epochs, args.nce_schedule, ""),
    ]
    if args.baselines in ("all", "1"):
        epochs = args.nce_epochs + args.cycles * args.coclr_epochs
        schedule = [str(epochs * 5 // 6)]
        trainings += [
            nce("InfoNCE-RGB-long", "infonce", RGB, epochs, schedule, "Long_"),
            nce("UberNCE-RGB", "ubernce", RGB, epochs, schedule, "Long_"),
        ]
    for cycle in range(1, args.cycles + 1):
        trainings.append(coclr(f"Cycle{cycle}-FlowMining", RGB, rgb, flow))
        rgb = f"Cycle{cycle}-FlowMining"
        trainings.append(coclr(f"Cycle{cycle}-RGBMining", FLOW, flow, rgb))
        flow = f"Cycle{cycle}-RGBMining"
    return trainings, (rgb, flow)


class Recipe:
    """Runs trainings and tests, unless they are done; knows the checkpoint of each training by its title."""

    def __init__(self, args: Namespace, common: tuple[str, ...]):
        self.args, self.common = args, common
        random = f"log-linclr/random_{args.net}_seed{args.seed or 0}/random.pth.tar"
        self.checkpoints = dict.fromkeys(RANDOM, random)

    def run(self, *command: str, processes: int = 1) -> None:
        """Print a command, and run it; if it fails, end with its status. Titles stand for checkpoints."""
        self.execute({"": self.words(command, processes)})

    def words(self, command: Sequence[str], processes: int) -> list[str]:
        """What stands after "python" for a command in so many processes; prints it."""
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
        words = [*launcher, *(self.checkpoints.get(word, word) for word in command)]
        print("+", shlex.join(["python", *words]), flush=True)
        return words

    def execute(self, commands: dict[str, list[str]]) -> None:
        """Run commands by their titles, at the same time; if one fails, end with its status."""
        if not self.args.dry_run:
            status = execute(commands)
            if status:
                sys.exit(status)

    def is_done(self, file: str | Path) -> bool:
        """Whether a command left ``file``, so that it need not be run; never in a dry run."""
        return Path(file).exists() and not self.args.dry_run

    def mark_done(self, file: Path) -> None:
        if not self.args.dry_run:
            file.touch()

    def train(self, trainings: dict[str, Training]) -> None:
        """Train at the same time, or go on with, those ``trainings``, by heading, that have not ended."""
        commands = {}
        for heading, training in trainings.items():
            print("==", heading)
            found = training.find_checkpoint()
            if found:
                print("done:", found)
            else:
                going_on = ("--epochs", str(training.epochs), "--resume", "auto")
                processes = self.args.nproc or training.gpus
                commands[training.title] = self.words((*training.command, *going_on), processes)
        self.execute(commands)
        for training in trainings.values():
            found = training.last_checkpoint if self.args.dry_run else training.find_checkpoint()
            if not found:
                raise UserError(f"{training.title} left no {training.last_checkpoint}")
            self.checkpoints[training.title] = found

    def features(self, title: str, name: str) -> Path:
        """Folder of a network's features of dataset ``name``."""
        return Path(self.checkpoints[title]).parent / f"feature-{name}"

    def evaluate(self, title: str, ending: str, name: str) -> None:
        """Retrieval by a network's features of one stream of dataset ``name``, then a linear probe."""
        args, dataset = self.args, name + ending
        print(f"== evaluate {title} on {dataset}")
        test = (
            "main_classifier.py",
            "--net",
            args.net,
            "--dataset",
            dataset,
            *CLIP,
            *self.common,
            *args.evaluate,
        )
        processes = args.nproc or 1
        features = self.features(title, name)
        if not self.is_done(features / f".done{ending}"):
            tested = "random" if title in RANDOM else title
            saving = ("--test", tested, "--retrieval", "--dirname", f"feature-{name}")
            self.run(*test, *saving, processes=processes)
            self.mark_done(features / f".done{ending}")
        if args.probe == "features":
            if not self.is_done(features / f".probed{ending}"):
                probe = ("eval/feature_linear_probe.py", "--dataset", dataset, "--test", str(features))
                self.run(*probe, "--final_bn", "--lr", "1.0", "--wd", "1e-3")
                self.mark_done(features / f".probed{ending}")
        elif title not in RANDOM:
            prefix = run_name(args, f"Probe-{title}_")
            options = ("--batch_size", "32", "--train_what", "last", *PROBE, "--name_prefix", prefix)
            command = (*test, *options, "--pretrain", title)
            folder = f"log-linclr/{prefix}{dataset}-*"
            probe = Training(f"Probe-{title}-{name}", ending, folder, PROBE_EPOCHS, 1, command)
            self.train({probe.title: probe})
            if not self.is_done(self.probabilities(title, name)):
                of_probe = ("--train_what", "last", "--test", probe.title, "--ten_crop")
                self.run(*test, *of_probe, processes=processes)

    def probabilities(self, title: str, name: str) -> str:
        """Where the ten-crop test of a network's probe on dataset ``name`` leaves class probabilities."""
        return f"{self.checkpoints[f'Probe-{title}-{name}']}-prob-ten.json"

    def compare(self, rgb: str, flow: str, name: str) -> None:
        """Both streams together on dataset ``name``, and pictures of what RGB retrieved."""
        print("== two-stream on", name)
        features = self.features(rgb, name)
        if not self.is_done(features / ".merged"):
            merge = ("eval/merge_2stream_prob.py", "--dataset", name, "--mode")
            self.run(*merge, "s", "--prob1", str(features), "--prob2", str(self.features(flow, name)))
            if self.args.probe != "features":
                probabilities = (self.probabilities(rgb, name), self.probabilities(flow, name))
                self.run(*merge, "c", "--prob1", probabilities[0], "--prob2", probabilities[1])
            self.mark_done(features / ".merged")
        pictures = ("--gallery", f"gallery-{name}.html", "--curve", f"recall-{name}.png")
        retrieval = ("eval/retrieval.py", "--dataset", name, "--test", str(features), *pictures)
        self.run(*retrieval, *places(self.common))


def places(options: tuple[str, ...]) -> list[str]:
    """Those of ``options`` that say where frames lie, with their values; pictures need no others."""
    starts = ("--data_root", *(f"--{stream}_" for stream in STREAMS))
    found: list[str] = []
    for i, word in enumerate(options):
        if word.startswith(starts):
            found += options[i : i + 1 if "=" in word else i + 2]
    return found


def execute(commands: dict[str, list[str]]) -> int:
    """Run ``python WORDS``, of which the scripts are this project's, for all titles at the same time.

    Returns an exit status, as a shell counts; where one fails, the others are asked to save and end. Of
    several, each line of output begins with the title. Ctrl-C reaches the commands as well as this process,
    which waits until they have saved.
    """
    several = len(commands) > 1
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if several else {}
    processes = {}
    for title, words in commands.items():
        words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
        processes[title] = subprocess.Popen([sys.executable, *words], **output)

    def stop(*_) -> None:
        for process in processes.values():
            process.terminate()

    meanwhile = {signal.SIGINT: lambda *_: None, signal.SIGTERM: stop}
    before = {number: signal.signal(number, handler) for number, handler in meanwhile.items()}
    with ThreadPoolExecutor(max(1, len(processes))) as pool:
        ended = [pool.submit(wait_for, process, title) for title, process in processes.items()]
        statuses = []
        for future in as_completed(ended):
            statuses.append(future.result())
            if statuses[-1]:
                stop()
    for number, handler in before.items():
        signal.signal(number, handler)
    status = next(filter(None, statuses), 0)
    return status if status >= 0 else 128 - status


def wait_for(process: subprocess.Popen, title: str) -> int:
    """The exit status of a process, whose output, if it is piped, is printed line by line."""
    for line in process.stdout or ():
        print(f"{title}: {line}", end="", flush=True)
    return process.wait()


def groups(trainings: list[Training], size: int) -> list[dict[str, Training]]:
    """The trainings by their headings, in groups of up to ``size`` that can be run at the same time."""
    titles = {training.title for training in trainings}
    found: list[dict[str, Training]] = [{}]
    for number, training in enumerate(trainings, 1):
        is_free = not titles.intersection(training.command)
        if found[-1] and not (is_free and len(found[-1]) < size):
            found.append({})
        found[-1][f"training {number} of {len(trainings)}: {training.title}"] = training
    return found


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args, common = parse_arguments(sys.argv[1:] if argv is None else argv)
    recipe = Recipe(args, common)
    trainings, last = list_trainings(args, common)
    for group in groups(trainings, args.at_once):
        recipe.train(group)
    random = RANDOM if args.baselines else {}
    endings = random | {training.title: training.ending for training in trainings}
    for name in args.eval:
        for title, ending in endings.items():
            recipe.evaluate(title, ending, name)
        recipe.compare(*last, name)
    recipe.run("eval/report.py", "--mean", "--chart", "results.png")


if __name__ == "__main__":
    main()
