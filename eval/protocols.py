"""Tests of a checkpoint: classification with several crops, retrieval. Records go to --results."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from backbone.select_backbone import select_backbone
from dataset.registry import Videos
from eval.features import PARTS, Features, are_current, load_features, save_features
from eval.metrics import accuracies, retrieve
from eval.pictures import confusion_matrix, confusion_picture, recall_curve
from eval.predict import class_probabilities, features_of, for_inference, read_videos
from eval.records import append_record, check_folder, provenance_of, write_file
from model.released import fetch
from model.weights import RANDOM, has_classifier, load_backbone, load_classifier, origin
from utils.checkpoint import load_checkpoint, save_atomically
from utils.errors import UserError
from utils.launch import World
from utils.log import log
from utils.metrics import as_text


def evaluate(args: Namespace, world: World) -> None:
    """Classify the test videos or retrieve their nearest training videos, as asked."""
    path = random_weights(args, world) if args.test == "random" else fetch(args.test, args.offline)
    checkpoint = load_checkpoint(path)
    crops = args.crops or (None if args.retrieval else "center")
    folder = Path(args.out_dir or path.parent)
    check_folder(Path(args.results).parent, "--results")
    check_folder(folder / args.dirname if args.retrieval else folder, "--out_dir")
    if crops:
        evaluate_classifier(args, world, crops, path, checkpoint, folder)
    if args.retrieval:
        evaluate_retrieval(args, world, path, checkpoint, folder / args.dirname)


def evaluate_classifier(
    args: Namespace, world: World, crops: str, path: Path, checkpoint: dict[str, Any], folder: Path
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
    what = "linear" if model.use_l2_norm else "finetune"
    log.info("%s: %s, epoch %d", path, what, provenance["epoch"])
    probabilities, tested = class_probabilities(model, videos, args, world, crops)
    if not world.is_main:
        return
    labels = torch.from_numpy(tested.labels)
    files = {result: folder / f"{path.name}-prob-{result}.json" for result in probabilities}
    for result, file in files.items():
        numbers = accuracies(probabilities[result], labels)
        log.info("%s, %s crop, %d videos: %s", args.dataset, result, len(tested), as_text(numbers))
        facts = {"crops": result, **counts(videos, len(tested)), "file": str(file.resolve())}
        append_record(args.results, what, provenance, **facts, numbers=numbers)
    for result, file in files.items():
        dataset = provenance["dataset"]
        rows = zip(tested.names, probabilities[result].tolist(), labels.tolist(), strict=True)
        entries = {name: {"mean_prob": row, "label": label, "dataset": dataset} for name, row, label in rows}
        write_file(file, json.dumps(entries))
        predicted = probabilities[result].argmax(dim=1).numpy()
        confusion = confusion_matrix(tested.labels, predicted, len(videos.classes))
        picture = folder / f"{path.name}-confusion-{result}.png"
        write_file(picture, confusion_picture(confusion, videos.classes))


def evaluate_retrieval(
    args: Namespace, world: World, path: Path, checkpoint: dict[str, Any], folder: Path
) -> None:
    """R@k of the network's features, which are kept in ``folder`` and reused where nothing changed."""
    videos = dict(zip(PARTS, read_videos(args, *PARTS), strict=True))
    provenance = provenance_of(args, path, checkpoint, videos)
    reused = torch.tensor(int(world.is_main and are_current(folder, args.dataset, provenance)))
    if world.size > 1:
        reused = reused.to(world.device)
        dist.broadcast(reused, 0)
    features = {}
    if reused:
        log.info("features of this checkpoint, these videos and settings are in %s already", folder)
    else:
        backbone, param = select_backbone(args.net)
        load_backbone(backbone, checkpoint, path)
        for part in PARTS:
            values, readable = features_of(backbone, param["feature_size"], videos[part], args, world)
            features[part] = Features(values, torch.from_numpy(readable.labels), readable.names)
    if not world.is_main:
        return
    train, test = (features.get(part) or load_features(folder, args.dataset, part) for part in PARTS)
    numbers, _, curve = retrieve([train], [test])
    found = f"{len(test.labels)} queries in {len(train.labels)} training videos: {as_text(numbers)}"
    log.info("%s, %s", args.dataset, found)
    tested = counts(videos["test"], len(test.labels))
    append_record(args.results, "retrieval", provenance, **tested, numbers=numbers)
    if not reused:
        save_features(folder, args.dataset, features, provenance)
    write_file(folder / f"{args.dataset}_recall.png", recall_curve(args.dataset, curve))


def counts(videos: Videos, tested: int) -> dict[str, int]:
    """What a record says of how many ``videos`` were tested."""
    return {"videos": tested, "left_out": videos.too_short + len(videos) - tested}


def random_weights(args: Namespace, world: World) -> Path:
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
