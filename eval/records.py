"""Records of evaluation: where numbers come from, results.jsonl, and JSON files."""

import contextlib
import hashlib
import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.catalogue import parse_name
from dataset.registry import Videos
from dataset.source import BrokenVideo
from model.weights import digest, origin
from utils.errors import UserError
from utils.files import lock, write_atomically
from utils.log import log

HEAD = '{"what": "'  # of every record


# Where numbers and features come from; what is not known is missing. Of the data: "dataset" (without its
# endings), "split", "stream", digests of "train_videos", "test_videos". Of the network: "checkpoint" (path),
# "sha256" of that file, "epoch" (the last finished one), "origin" (see ``model.weights.origin``). "settings":
# the options on which outputs depend.
Provenance = dict[str, Any]


def provenance_of(
    args: Namespace, path: Path, checkpoint: dict[str, Any], videos: dict[str, Videos]
) -> Provenance:
    """The provenance of what the ``checkpoint`` at ``path`` says of the ``videos`` of each part."""
    name = parse_name(args.dataset)
    return {
        "dataset": name.base,
        "split": args.which_split,
        "stream": name.streams[0],
        "checkpoint": str(path),
        "sha256": digest(path),
        "epoch": int(checkpoint.get("epoch", -1)),
        "origin": origin(checkpoint, path),
        "settings": {"net": args.net, **settings_of(args)},
        **{f"{part}_videos": content_digest(chosen) for part, chosen in videos.items()},
    }


def settings_of(args: Namespace) -> dict[str, Any]:
    """The options on which features depend."""
    return {name: getattr(args, name) for name in ("seq_len", "ds", "img_dim", "precision")}


def content_digest(videos: Videos) -> str:
    """Digest of names, labels, frame counts, sizes of records: changes with the content, not with a copy."""
    ((stream, store),) = videos.stores.items()
    sizes = []
    for position in videos.positions[stream].tolist():
        try:
            sizes.append(store.record_size(position))
        except BrokenVideo:
            sizes.append(0)
    content = [videos.names, videos.labels.tolist(), videos.frames.tolist(), sizes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def naming(place: Path, option: str) -> Iterator[None]:
    """Raise UserError where the block cannot write to ``place``; the ``option`` chooses another."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}; choose another by {option}") from error


def check_folder(folder: Path, option: str) -> None:
    """Raise UserError where no file could be made in ``folder``; one that is missing is not made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with naming(there, option), tempfile.TemporaryFile(dir=there):
        pass


def read_json(path: str | Path) -> Any:
    """Content of a JSON file; UserError where it is missing or corrupt."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is corrupt, not JSON: {str(error)[:200]}; make it anew") from error


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write the whole file or leave the old one; UserError where that fails."""
    with write_atomically(path, "mend the folder or choose another place") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append_record(path: str, what: str, provenance: Provenance, **entries: Any) -> None:
    """Append a record, a line of JSON that mixes with no other process's and no line that was cut short."""
    line = json.dumps({"what": what, **provenance, **entries}) + "\n"
    with naming(Path(path), "--results"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with lock(path) as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                line = "\n" + line
            file.write(line.encode())


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records of a results.jsonl; one that was cut short, as by a full disk, is named and left out.

    Raises UserError, naming the line, where one is corrupt in another way.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; main_classifier.py --test writes it") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        entries = record if isinstance(record, dict) else {}
        if isinstance(entries.get("what"), str) and isinstance(entries.get("numbers"), dict):
            records.append(record)
        elif record is None and (line.startswith(HEAD) or HEAD.startswith(line)):
            log.warning("%s, line %d was cut short: left out; test that checkpoint again", path, number)
        else:
            raise UserError(f"{path}, line {number} is corrupt: {line[:100]!r}; remove that line")
    return records
