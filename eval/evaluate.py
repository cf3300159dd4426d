"""Tests of a checkpoint: classification with several crops, and retrieval. Results go beside it and to --results."""

import argparse
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backbone.select_backbone import select_backbone
from dataset.registry import Videos, open_videos, parse_name
from dataset.window_dataset import WindowDataset
from eval.extract import CROPS, average_over_windows, folded, views_of
from eval.features import PARTS, Features, load_features, made_from_the_same, provenance, save_features
from eval.metrics import accuracies, recalls, retrieve
from eval.pictures import confusion_matrix, confusion_picture, recall_curve
from eval.records import append_record, write_file
from model.classifier import LinearClassifier
from model.released import fetch
from model.weights import RANDOM, has_classifier, load_backbone, load_classifier, origin
from utils.checkpoint import load_checkpoint, save_atomically
from utils.errors import UserError
from utils.launch import World
from utils.metrics import as_text

log = logging.getLogger("coclr")


def read_videos(args: argparse.Namespace, *parts: str) -> list[Videos]:
    """The videos of each of the ``parts``; UserError where they do not have the same classes."""
    found = [
        open_videos(
            args.dataset,
            part,
            args.seq_len,
            args.ds,
            args.data_root,
            {"rgb": args.rgb_lmdb, "flow": args.flow_lmdb},
            args.which_split,
        )
        for part in parts
    ]
    if any(videos.classes != found[0].classes for videos in found):
        raise UserError(
            "training and test videos have different class lists; put one classes.txt beside the databases"
        )
    return found


def averages(
    network: Callable[[Tensor], Tensor],
    size: int,
    args: argparse.Namespace,
    world: World,
    videos: Videos,
    crops: str = "center",
    middle_only: bool = False,
) -> dict[str, Features]:
    """Mean outputs [V, size] of the ``network`` for the readable ``videos`` by result, see ``average_over_windows``."""
    dataset = WindowDataset(videos, args.seq_len, args.ds, args.img_dim, CROPS[crops], middle_only)
    means, readable = average_over_windows(
        network,
        size,
        dataset,
        views_of(crops),
        world,
        args.batch_size,
        args.workers,
        args.precision,
        args.channels_last,
    )
    if not readable.any():
        raise UserError(f"no video of {args.dataset} could be read")
    labels, names = (
        torch.from_numpy(videos.labels)[readable],
        list(itertools.compress(videos.names, readable)),
    )
    return {result: Features(mean[readable], labels, names) for result, mean in means.items()}


def probabilities_of(
    model: LinearClassifier,
    args: argparse.Namespace,
    world: World,
    videos: Videos,
    crops: str = "center",
    middle_only: bool = False,
) -> dict[str, Features]:
    """Class probabilities [V, classes] by result, see ``averages``; leaves the model in eval mode."""
    model.eval()
    return averages(
        lambda clips: model(clips)[0].float().softmax(dim=1),
        len(videos.classes),
        args,
        world,
        videos,
        crops,
        middle_only,
    )


def evaluate(args: argparse.Namespace, world: World) -> None:
    """Classify the test videos or retrieve their nearest training videos, as asked."""
    path = random_weights(args, world) if args.test == "random" else fetch(args.test, args.offline)
    checkpoint = load_checkpoint(path)
    settings = {key: getattr(args, key) for key in ("net", "seq_len", "ds", "img_dim", "precision")}
    name = parse_name(args.dataset)
    record = {
        "dataset": name.base,
        "split": args.which_split,
        "stream": name.streams[0],
        "checkpoint": str(path),
        "epoch": int(checkpoint.get("epoch", -1)),
        "origin": origin(checkpoint, path),
        "settings": settings,
    }
    asked = next((crops for crops in ("ten", "five", "center") if getattr(args, f"{crops}_crop")), None)
    if asked or not args.retrieval:
        evaluate_crops(args, world, asked or "center", path, checkpoint, record)
    if args.retrieval:
        evaluate_retrieval(args, world, path, checkpoint, record)


def evaluate_crops(
    args: argparse.Namespace,
    world: World,
    crops: str,
    path: Path,
    checkpoint: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Accuracy with the crops asked for and with the fewer ones within; JSON and confusion matrices beside CKPT."""
    if not has_classifier(checkpoint):
        raise UserError(
            f"{path} holds no classifier ({origin(checkpoint, path)['method']}): test it by --retrieval, "
            f"or train one by --pretrain {path}"
        )
    (videos,) = read_videos(args, "test")
    model = for_inference(load_classifier(checkpoint, args.net, videos.classes, path), args, world)
    kind = "linear" if model.use_l2_norm else "finetune"
    log.info(
        "%s: %s, epoch %d, %s",
        path,
        "linear probe" if kind == "linear" else "whole network trained",
        record["epoch"],
        "batch norm before the layer" if model.final_bn is not None else "no final batch norm",
    )
    found = probabilities_of(model, args, world, videos, crops)
    for result, (probabilities, labels, names) in found.items() if world.is_main else ():
        numbers = accuracies(probabilities, labels)
        log.info("%s, %s crop, %d videos: %s", args.dataset, result, len(names), as_text(numbers))
        rows = zip(names, probabilities.tolist(), labels.tolist(), strict=True)
        file = write_file(
            f"{path}-prob-{result}.json",
            json.dumps(
                {
                    name: {"mean_prob": row, "label": label, "dataset": record["dataset"]}
                    for name, row, label in rows
                }
            ),
        )
        counts = confusion_matrix(labels.tolist(), probabilities.argmax(dim=1).tolist(), len(videos.classes))
        write_file(f"{path}-confusion-{result}.png", confusion_picture(counts, videos.classes))
        append_record(
            args.results,
            what=kind,
            crops=result,
            **record,
            videos=len(names),
            left_out=len(videos) - len(names),
            file=str(file.resolve()),
            numbers=numbers,
        )


def evaluate_retrieval(
    args: argparse.Namespace, world: World, path: Path, checkpoint: dict[str, Any], record: dict[str, Any]
) -> None:
    """R@k of the network's features, which are kept beside CKPT and reused where nothing changed."""
    videos = dict(zip(PARTS, read_videos(args, *PARTS), strict=True))
    folder = path.parent / args.dirname
    made_from = provenance(path, videos, record)
    reusable = torch.tensor(
        int(world.is_main and made_from_the_same(folder, args.dataset, made_from)), device=world.device
    )
    if world.size > 1:
        dist.broadcast(reusable, 0)
    if reusable:
        log.info("features of this checkpoint and these settings are in %s already", folder)
    else:
        backbone, param = select_backbone(args.net)
        load_backbone(backbone, checkpoint, path)
        parts = {part: extract(backbone, param["feature_size"], args, world, videos[part]) for part in PARTS}
        if world.is_main:
            save_features(folder, args.dataset, parts, made_from)
    if not world.is_main:
        return
    train, test = (load_features(folder, args.dataset, part) for part in PARTS)
    numbers, neighbours = retrieve([train], [test])
    log.info(
        "%s, %d queries in %d training videos: %s",
        args.dataset,
        len(test.labels),
        len(train.labels),
        as_text(numbers),
    )
    write_file(
        folder / f"{args.dataset}_recall.png", recall_curve({args.dataset: recalls(neighbours, test, train)})
    )
    append_record(
        args.results,
        what="retrieval",
        **record,
        videos=len(test.labels),
        left_out=len(videos["test"]) - len(test.labels),
        numbers=numbers,
    )


def extract(
    backbone: nn.Module, size: int, args: argparse.Namespace, world: World, videos: Videos
) -> Features:
    """Features of the readable ``videos``: the global average, averaged over all windows, centre crop."""
    backbone = for_inference(backbone, args, world)
    return averages(lambda clips: backbone(clips).float().mean(dim=(2, 3, 4)), size, args, world, videos)[
        "center"
    ]


def for_inference(module: nn.Module, args: argparse.Namespace, world: World) -> nn.Module:
    """A copy of the module on the device, without batch norms, and compiled and channels-last where asked for."""
    module = folded(module)
    if args.compile:
        module.compile()
    return module.to(
        world.device, memory_format=torch.channels_last_3d if args.channels_last else torch.contiguous_format
    )


def random_weights(args: argparse.Namespace, world: World) -> Path:
    """A checkpoint of an untrained network, to compare with."""
    path = Path(f"log-{args.prefix}/random_{args.net}_seed{args.seed}/random.pth.tar")
    if world.is_main and not path.is_file():
        torch.manual_seed(args.seed)
        state = {
            f"encoder_q.0.{key}": value for key, value in select_backbone(args.net)[0].state_dict().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically({"epoch": -1, "state_dict": state, "origin": RANDOM}, path)
    if world.size > 1:
        dist.barrier()
    return path
