"""Files of evaluation: results.jsonl, JSON, and whole files written beside their place and renamed."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from utils.errors import UserError


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write the whole file or leave the old one; raises UserError where that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; mend the folder or choose another place"
        ) from error
    return path


def read_json(path: str | Path) -> Any:
    """Content of a JSON file; UserError where it is missing or corrupt."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is corrupt, not JSON: {str(error)[:200]}; make it anew") from error


def append_record(path: str | Path, **entries: Any) -> None:
    """Append one record, a line of JSON, in one write that does not mix with another process's."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(entries) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot append to {path}: {error.strerror}; choose another place by --results"
        ) from error


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records of a results.jsonl; UserError naming a line that is corrupt."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; evaluations write it, see main_classifier.py --test"
        ) from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["what"], str) or not isinstance(record["numbers"], dict):
                raise ValueError("'what' or 'numbers' is of another type")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number} is corrupt: {str(error)[:100]}; remove that line"
            ) from error
        records.append(record)
    return records
