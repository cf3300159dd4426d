"""The paper's recipe, from databases to the table.

InfoNCE of RGB and of flow, then cycles of co-training, each run from the last checkpoint of its predecessors;
then retrieval and linear probe of each, two-stream, the table, its chart and a gallery of what was retrieved.
What is done is skipped, unless it takes but seconds, and what was interrupted goes on, so the same command
can be given again at any time. NPROC processes per run (default: the paper's GPUs). Options that are not of
this program go to every command that trains or tests, and take the place of those of --small, --pretrain and
--cotrain.
"""

import glob
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import main_classifier
import main_coclr
import main_nce
from backbone.select_backbone import NETWORKS
from dataset.catalogue import STREAMS
from dataset.options import add_database_options
from dataset.registry import source_options
from utils.errors import UserError, one_line_errors
from utils.options import Parser, non_negative_int, positive_int, seed

ROOT = Path(__file__).resolve().parent.parent
PAPER_K400 = {
    "nce_gpus": 4,
    "coclr_epochs": 50,
    "coclr_schedule": ["40"],
    "queue": 16384,
    "eval": ["ucf101", "hmdb51"],
}
SMALL = {  # for some hundred steps, see README: "A small trial learns nothing"
    "net": "s3d_quarter",
    "nce_gpus": 1,  # a queue of one batch holds that of one process
    "coclr_gpus": 1,
    "cycles": 1,
    "probe": "features",
    "pretrain": "--moco-k 32 --moco-m 0.5 --lr 1e-4 --bn_bias 1 --flow_colour 0 --save_freq 10".split(),
    "cotrain": "--moco-k 256 --moco-m 0.95 --hide_self 0".split(),
    "train_flow": "--lr 5e-5".split(),
}
RGB, FLOW = (STREAMS[stream].ending for stream in ("rgb", "flow"))  # of dataset names
CLIP = ("--seq_len", "32", "--ds", "1")
RANDOM = {"Random-RGB": RGB, "Random-Flow": FLOW}
NO_LEARNING = {"NoLearning-RGB": RGB, "NoLearning-Flow": FLOW}  # statistics of batch norm alone
NO_LEARNING_EPOCHS = 3
PROBE_EPOCHS = 100
PROBE = ("--schedule", "60", "80", "--optim", "sgd", "--lr", "1e-1", "--wd", "1e-3", "--final_bn")


def parse_arguments(words: list[str]) -> tuple[Namespace, list[str]]:
    """The settings of the recipe, and the options of every command that trains or tests."""
    parser = Parser(" ".join(__doc__.split()), "DATASET [NPROC]")
    # one argument: of two, some versions of Python take the second from behind an option that is not known
    meaning = "name of a dataset; processes of every run"
    parser.add_argument("dataset_and_nproc", nargs="+", metavar="DATASET [NPROC]", help=meaning)
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    add_database_options(parser)
    group = parser.add_argument_group("recipe")
    group.add_argument("--small", action="store_true", help="defaults for some hundred videos")
    group.add_argument("--net", choices=tuple(NETWORKS), default="s3d", help="network of all runs")
    group.add_argument("--cycles", type=non_negative_int, default=2, help="cycles of co-training")
    meaning = "test random weights too, as they are and after three epochs at rate 0, for batch norm; "
    meaning += "all: also train InfoNCE and UberNCE on RGB for as long as CoCLR in all"
    group.add_argument("--baselines", choices=["random", "all"], help=meaning)
    group.add_argument("--nce_epochs", type=positive_int, default=300, help="epochs of InfoNCE")
    group.add_argument("--coclr_epochs", type=positive_int, default=100, help="epochs of each co-training")
    for name, default, meaning in (
        ("nce_schedule", "250 280", "epochs of InfoNCE that drop the rate"),
        ("coclr_schedule", "80", "epochs of co-training that drop the rate"),
        ("pretrain", "", "options of InfoNCE and co-training: '--moco_k 64 --lr 4e-4'"),
        ("cotrain", "", "options of co-training alone"),
        ("train_flow", "", "options of all pretraining of flow"),
        ("eval", None, "datasets to test on: 'ucf101 hmdb51'"),
    ):
        group.add_argument(f"--{name}", type=str.split, default=default, help=meaning)
    meaning = "a linear layer on saved features, minutes instead of hours"
    group.add_argument("--probe", choices=["features"], help=meaning)
    group.add_argument("--seed", type=seed, help="the runs of each seed have names of their own")
    meaning = "commands at the same time, on the same processors or GPUs, where none needs another"
    group.add_argument("--at_once", type=positive_int, default=1, help=meaning)
    known, _ = parser.parse_known_args(words)
    dataset = known.dataset_and_nproc[0]
    parser.set_defaults(dataset=dataset, eval=[dataset], nce_gpus=2, coclr_gpus=2, queue=2048)
    if dataset == "k400":
        parser.set_defaults(**PAPER_K400)
    if known.small:
        parser.set_defaults(**SMALL)
    args, common = parser.parse_known_args(words)
    if args.small:  # what is given is put behind its options, so that the others hold
        for name in ("pretrain", "cotrain", "train_flow"):
            setattr(args, name, [*SMALL[name], *getattr(known, name)])
    args.nproc = number_of_processes(parser, args.dataset_and_nproc[1:], common[:1])
    for word in common:
        if word.startswith(("--epochs", "--schedule")):
            parser.error(f"{word}: say --nce_epochs, --nce_schedule, --coclr_epochs or --coclr_schedule")
        if word.startswith(("--prefix", "--name_prefix", "--resume")):
            parser.error(f"{word}: the recipe gives it; start it in another folder for other results")
    given = [] if args.seed is None else ["--seed", str(args.seed)]
    return args, [*common, *places(args), *given]


def number_of_processes(parser: Parser, given: list[str], unknown: list[str]) -> int | None:
    """The processes of every run: NPROC, if it is given right behind the dataset, where it has to be."""
    stray = [*given[1:], *(word for word in unknown if not word.startswith("-"))]
    try:
        number = positive_int(given[0]) if given else None
    except (ValueError, ArgumentTypeError):
        stray.insert(0, given[0])
    if stray:
        parser.error(f"{stray[0]}: what may follow DATASET is NPROC, a whole number of at least 1")
    return number


def places(args: Namespace) -> list[str]:
    """The options that say where frames lie."""
    given = {name: getattr(args, name) for name in ("data_root", *source_options())}
    return [f"--{name}={value}" for name, value in given.items() if value]


@dataclass(frozen=True)
class Command:
    """``python WORDS`` in so many processes; done once there is a file that the pattern ``leaves`` fits."""

    title: str
    words: list[str]
    leaves: str = ""
    processes: int = 1

    def found(self) -> str | None:
        """What it left; None if it is not done. Raises UserError where several files may be meant."""
        files = sorted(glob.glob(self.leaves))
        if len(files) > 1:
            raise UserError(f"{' '.join(files)} all match; move the runs you do not mean away")
        return files[0] if files else None


def training(title: str, script: ModuleType, words: list[str], processes: int, *unknown: str) -> Command:
    """A run of ``script``, which goes on where it was and leaves its last checkpoint.

    ``unknown`` are patterns of what its name tells besides its options.
    """
    words = [*words, "--resume", "auto"]
    args = script.make_parser().parse_args(words)
    leaves = f"log-{args.prefix}/{script.run_name(args, *unknown)}/model/epoch{args.epochs - 1}.pth.tar"
    return Command(title, [f"{script.__name__}.py", *words], leaves, processes)


class Recipe:
    """Runs trainings and tests.

    left: what each command has left, by its title; of a training this is its last checkpoint. endings: of the
    names of datasets that a network is tested on, by the title of its training.
    """

    def __init__(self, args: Namespace, common: list[str]):
        self.args, self.common = args, common
        self.seed = "" if args.seed is None else f"seed{args.seed}_"
        self.train_flow = {RGB: [], FLOW: args.train_flow}
        random = f"log-linclr/random_{args.net}_seed{args.seed or 0}/random.pth.tar"
        self.left = dict.fromkeys(RANDOM, random)
        self.endings = dict(RANDOM) if args.baselines else {}

    def run(self, *commands: Command) -> None:
        """Print commands, and run those that are not done at the same time; if one fails, end as it did."""
        todo = {}
        for command in commands:
            print("==", command.title)
            found = command.found()
            if found:
                print("done:", found, flush=True)
                continue
            launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={command.processes}"]
            words = [*launcher, *command.words] if command.processes > 1 else command.words
            print("+", shlex.join(["python", *words]), flush=True)
            todo[command.title] = words
        if todo and not self.args.dry_run:
            status = execute(todo)
            if status:
                sys.exit(status)
        self.left |= {command.title: command.found() or command.leaves for command in commands}

    def run_all(self, commands: list[Command]) -> None:
        """Run commands, as many at the same time as --at_once says."""
        for start in range(0, len(commands), self.args.at_once):
            self.run(*commands[start : start + self.args.at_once])

    def pretrain(self) -> tuple[str, str]:
        """All pretraining; returns the titles of the last trainings of RGB and of flow."""
        args = self.args
        rgb, flow = "InfoNCE-RGB", "InfoNCE-Flow"
        length = (args.nce_epochs, args.nce_schedule)
        trainings = [self.nce(rgb, "infonce", RGB, *length), self.nce(flow, "infonce", FLOW, *length)]
        if args.baselines:
            still = (NO_LEARNING_EPOCHS, [], "NoLearning_", ("--lr", "0"))
            trainings += [self.nce(title, "infonce", ending, *still) for title, ending in NO_LEARNING.items()]
        if args.baselines == "all":
            epochs = args.nce_epochs + args.cycles * args.coclr_epochs
            long = (epochs, [str(epochs * 5 // 6)], "Long_")
            trainings.append(self.nce("InfoNCE-RGB-long", "infonce", RGB, *long))
            trainings.append(self.nce("UberNCE-RGB", "ubernce", RGB, *long))
        self.run_all(trainings)
        for cycle in range(1, args.cycles + 1):
            rgb = self.co_train(f"Cycle{cycle}-FlowMining", RGB, rgb, flow)
            flow = self.co_train(f"Cycle{cycle}-RGBMining", FLOW, flow, rgb)
        return rgb, flow

    def nce(
        self,
        title: str,
        model: str,
        ending: str,
        epochs: int,
        schedule: list[str],
        prefix: str = "",
        options: tuple[str, ...] = (),
    ) -> Command:
        """A training of one stream."""
        args, prefix, dataset = self.args, self.seed + prefix, f"{self.args.dataset}{ending}-2clip"
        words = ["--model", model, "--dataset", dataset, *self.contrast(prefix), "-j", "16"]
        words += ["--schedule", *schedule, *args.pretrain, *self.common, *self.train_flow[ending]]
        words += [*options, "--epochs", str(epochs)]
        self.endings[title] = ending
        return training(title, main_nce, words, args.nproc or args.nce_gpus)

    def co_train(self, title: str, ending: str, own: str, other: str) -> str:
        """Train the network of one stream further by the other, both given by title; returns its title."""
        args, prefix, dataset = self.args, f"{self.seed}{title}_", f"{self.args.dataset}-2stream-2clip"
        words = ["--topk", "5", "--dataset", dataset, *self.contrast(prefix), "-j", "8"]
        words += ["--reverse"] if ending == FLOW else []
        words += ["--pretrain", self.left[own], self.left[other], "--schedule", *args.coclr_schedule]
        words += [*args.pretrain, *args.cotrain, *self.common, *self.train_flow[ending]]
        words += ["--epochs", str(args.coclr_epochs)]
        self.endings[title] = ending
        self.run(training(title, main_coclr, words, args.nproc or args.coclr_gpus))
        return title

    def contrast(self, prefix: str) -> list[str]:
        """Options of all pretraining."""
        args = self.args
        name = ["--name_prefix", prefix] if prefix else []
        return ["--net", args.net, "--moco-k", str(args.queue), *CLIP, "--batch_size", "32", *name]

    def features(self, title: str, name: str) -> Path:
        """Folder of a network's features of dataset ``name``."""
        return Path(self.left[title]).parent / f"feature-{name}"

    def evaluate(self, name: str) -> None:
        """Retrieval by all networks on their streams of dataset ``name``, then linear probes of them."""
        self.run_all([self.retrieval(title, name) for title in self.endings])
        if self.args.probe == "features":
            self.run_all([self.probe_of_features(title, name) for title in self.endings])
        else:
            trained = [title for title in self.endings if title not in (*RANDOM, *NO_LEARNING)]
            self.run_all([self.probe(title, name) for title in trained])
            self.run_all([self.ten_crops(title, name) for title in trained])

    def test(self, title: str, name: str) -> list[str]:
        """Options of all tests of a network on its stream of dataset ``name``."""
        return ["--net", self.args.net, "--dataset", name + self.endings[title], *CLIP, *self.common]

    def retrieval(self, title: str, name: str) -> Command:
        """It knows itself whether the features that are there are still those of this checkpoint."""
        tested = "random" if title in RANDOM else self.left[title]
        words = ["main_classifier.py", *self.test(title, name), "--test", tested, "--retrieval"]
        words += ["--dirname", self.features(title, name).name]
        title = f"retrieval by {title} on {name}{self.endings[title]}"
        return Command(title, words, processes=self.args.nproc or 1)

    def probe_of_features(self, title: str, name: str) -> Command:
        """A linear layer on the features that retrieval has saved."""
        dataset = name + self.endings[title]
        words = ["eval/feature_linear_probe.py", "--dataset", dataset]
        words += ["--test", str(self.features(title, name)), "--final_bn", "--lr", "1.0", "--wd", "1e-3"]
        return Command(f"linear probe of {title} on {dataset}", words)

    def probe(self, title: str, name: str) -> Command:
        """A linear layer trained on clips."""
        words = [*self.test(title, name), "--batch_size", "32", "--train_what", "last", *PROBE]
        words += ["--name_prefix", f"{self.seed}Probe-{title}_", "--pretrain", self.left[title]]
        words += ["--epochs", str(PROBE_EPOCHS)]
        title = f"linear probe of {title} on {name}{self.endings[title]}"
        return training(title, main_classifier, words, self.args.nproc or 1, "*")

    def ten_crops(self, title: str, name: str) -> Command:
        """The test of a linear layer trained on clips."""
        probe = self.left[f"linear probe of {title} on {name}{self.endings[title]}"]
        words = ["main_classifier.py", *self.test(title, name), "--train_what", "last"]
        words += ["--test", probe, "--ten_crop"]
        return Command(
            f"ten crops by {title} on {name}", words, f"{probe}-prob-ten.json", self.args.nproc or 1
        )

    def compare(self, rgb: str, flow: str, name: str) -> None:
        """Both streams together on dataset ``name``, and pictures of what RGB retrieved."""
        features = str(self.features(rgb, name))
        merge = ["eval/merge_2stream_prob.py", "--dataset", name, "--mode"]
        words = [*merge, "s", "--prob1", features, "--prob2", str(self.features(flow, name))]
        self.run(Command(f"two-stream retrieval on {name}", words))
        if self.args.probe != "features":
            first, second = (self.left[f"ten crops by {title} on {name}"] for title in (rgb, flow))
            words = [*merge, "c", "--prob1", first, "--prob2", second]
            self.run(Command(f"two-stream linear probe on {name}", words))
        words = ["eval/retrieval.py", "--dataset", name, "--test", features, *places(self.args)]
        words += ["--gallery", f"gallery-{name}.html", "--curve", f"recall-{name}.png"]
        self.run(Command(f"pictures of {name}", words))


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
    status = 0
    with ThreadPoolExecutor(len(processes)) as pool:
        ended = [pool.submit(wait_for, process, title) for title, process in processes.items()]
        for future in as_completed(ended):
            status = status or future.result()
            if status:
                stop()
    for number, handler in before.items():
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def wait_for(process: subprocess.Popen, title: str) -> int:
    """The exit status of a process, whose output, if it is piped, is printed line by line."""
    for line in process.stdout or ():
        print(f"{title}: {line}", end="", flush=True)
    return process.wait()


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    args, common = parse_arguments(sys.argv[1:] if argv is None else argv)
    recipe = Recipe(args, common)
    rgb, flow = recipe.pretrain()
    for name in args.eval:
        recipe.evaluate(name)
        recipe.compare(rgb, flow, name)
    recipe.run(Command("table", ["eval/report.py", "--mean", "--chart", "results.png"]))


if __name__ == "__main__":
    main()
