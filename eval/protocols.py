"""Tests of a checkpoint: classification with several crops, retrieval. Records go to --results."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from backbone.select_backbone import select_backbone
from dataset.registry import Videos
from eval.features import PARTS, Features, are_current, load_features, save_features
from eval.metrics import accuracies, retrieve
from eval.pictures import confusion_matrix, confusion_picture, recall_curve
from eval.predict import class_probabilities, features_of, for_inference, read_videos
from eval.records import append_record, check_folder, check_results, provenance_of, write_file
from model.released import fetch
from model.weights import RANDOM, has_classifier, load_backbone, load_classifier, origin
from utils.checkpoint import load_checkpoint, save_atomically
from utils.errors import UserError
from utils.launch import World
from utils.metrics import as_text

log = logging.getLogger("coclr")


def evaluate(args: argparse.Namespace, world: World) -> None:
    """Classify the test videos or retrieve their nearest training videos, as asked."""
    path = random_weights(args, world) if args.test == "random" else fetch(args.test, args.offline)
    checkpoint = load_checkpoint(path)
    crops = next((crops for crops in ("ten", "five", "center") if getattr(args, f"{crops}_crop")), None)
    if crops is None and not args.retrieval:
        crops = "center"
    folder = Path(args.out_dir or path.parent)
    feature_folder = folder / args.dirname
    check_results(Path(args.results))
    if crops:
        check_folder(folder, "--out_dir")
    if args.retrieval:
        check_folder(feature_folder, "--out_dir")
    if crops:
        evaluate_classifier(args, world, crops, path, checkpoint, folder)
    if args.retrieval:
        evaluate_retrieval(args, world, path, checkpoint, feature_folder)


def evaluate_classifier(
    args: argparse.Namespace, world: World, crops: str, path: Path, checkpoint: dict[str, Any], folder: Path
) -> None:
    """Accuracy with the ``crops`` asked for and those within; JSON and confusion matrices in ``folder``."""
    if not has_classifier(checkpoint):
        raise UserError(
            f"{path} holds no classifier ({origin(checkpoint, path)['method']}): test it by --retrieval, "
            f"or train one by --pretrain {path}"
        )
    (videos,) = read_videos(args, "test")
    model = for_inference(load_classifier(checkpoint, args.net, videos.classes, path), args, world)
    provenance = provenance_of(args, path, checkpoint, {"test": videos})
    trained = "linear probe" if model.use_l2_norm else "whole network trained"
    norm = "no final batch norm" if model.final_bn is None else "batch norm before the layer"
    log.info("%s: %s, epoch %d, %s", path, trained, provenance["epoch"], norm)
    probabilities, tested = class_probabilities(model, videos, args, world, crops)
    if not world.is_main:
        return
    labels = torch.from_numpy(tested.labels)
    files = {result: folder / f"{path.name}-prob-{result}.json" for result in probabilities}
    for result, file in files.items():
        numbers = accuracies(probabilities[result], labels)
        log.info("%s, %s crop, %d videos: %s", args.dataset, result, len(tested), as_text(numbers))
        append_record(
            args.results,
            "linear" if model.use_l2_norm else "finetune",
            provenance,
            crops=result,
            videos=len(tested),
            left_out=videos.too_short + len(videos) - len(tested),
            file=str(file.resolve()),
            numbers=numbers,
        )
    for result, file in files.items():
        rows = zip(tested.names, probabilities[result].tolist(), labels.tolist(), strict=True)
        dataset = provenance["dataset"]
        entries = {name: {"mean_prob": row, "label": label, "dataset": dataset} for name, row, label in rows}
        write_file(file, json.dumps(entries))
        predicted = probabilities[result].argmax(dim=1)
        counts = confusion_matrix(labels.tolist(), predicted.tolist(), len(videos.classes))
        picture = folder / f"{path.name}-confusion-{result}.png"
        write_file(picture, confusion_picture(counts, videos.classes))


def evaluate_retrieval(
    args: argparse.Namespace, world: World, path: Path, checkpoint: dict[str, Any], folder: Path
) -> None:
    """R@k of the network's features, which are kept in ``folder`` and reused where nothing changed."""
    videos = dict(zip(PARTS, read_videos(args, *PARTS), strict=True))
    provenance = provenance_of(args, path, checkpoint, videos)
    reused = torch.tensor(int(world.is_main and are_current(folder, args.dataset, provenance)))
    if world.size > 1:
        reused = reused.to(world.device)
        dist.broadcast(reused, 0)
    if reused:
        log.info("features of this checkpoint, these videos and settings are in %s already", folder)
    else:
        backbone, param = select_backbone(args.net)
        load_backbone(backbone, checkpoint, path)
        features = {
            part: extract(backbone, param["feature_size"], videos[part], args, world) for part in PARTS
        }
    if not world.is_main:
        return
    if reused:
        features = {part: load_features(folder, args.dataset, part) for part in PARTS}
    train, test = (features[part] for part in PARTS)
    numbers, _, curve = retrieve([train], [test])
    counts = f"{len(test.labels)} queries in {len(train.labels)} training videos"
    log.info("%s, %s: %s", args.dataset, counts, as_text(numbers))
    append_record(
        args.results,
        "retrieval",
        provenance,
        videos=len(test.labels),
        left_out=videos["test"].too_short + len(videos["test"]) - len(test.labels),
        numbers=numbers,
    )
    if not reused:
        save_features(folder, args.dataset, features, provenance)
    write_file(folder / f"{args.dataset}_recall.png", recall_curve(args.dataset, curve))


def extract(
    backbone: nn.Module, size: int, videos: Videos, args: argparse.Namespace, world: World
) -> Features:
    """Features of the ``videos`` that can be read, see ``features_of``."""
    features, readable = features_of(backbone, size, videos, args, world)
    return Features(features, torch.from_numpy(readable.labels), readable.names)


def random_weights(args: argparse.Namespace, world: World) -> Path:
    """A checkpoint of an untrained network, to compare with."""
    path = Path(f"log-{args.prefix}/random_{args.net}_seed{args.seed}/random.pth.tar")
    if world.is_main and not path.is_file():
        torch.manual_seed(args.seed)
        backbone, _ = select_backbone(args.net)
        state = {f"encoder_q.0.{key}": value for key, value in backbone.state_dict().items()}
        save_atomically({"epoch": -1, "state_dict": state, "origin": RANDOM}, path)
    if world.size > 1:
        dist.barrier()
    return path
