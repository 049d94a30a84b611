"""metrics.jsonl, one JSON object per epoch, and the best values over all epochs."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import write_bytes

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Appends one line and syncs it to disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(_line(record))
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> list[Record]:
    """Returns the records up to the first damaged line, which a crash may leave; none if the file is missing."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
    return records


def cut_back(path: Path, epochs: int) -> list[Record]:
    """Truncates the file to its first `epochs` epochs, those of a checkpoint, and returns them.

    Raises:
        UserError: some of these epochs are missing; nothing is written.
    """
    records = read(path)[:epochs]
    if [record.get("epoch") for record in records] != list(range(1, epochs + 1)):
        raise UserError(
            f"{path} does not hold the {epochs} epochs that the checkpoint beside it has passed; "
            "put the file back or start in another --workdir"
        )
    if path.exists():
        write_bytes(path, "".join(map(_line, records)).encode())
    return records


class Best(NamedTuple):
    """The largest value of a metric and the first epoch that reaches it."""

    value: float
    epoch: int


def best(records: list[Record], key: str) -> Best | None:
    """Returns the largest value of `key` and the first epoch that reaches it; None if no record has the key."""
    scored = [record for record in records if key in record]
    if not scored:
        return None
    first = max(scored, key=lambda record: record[key])  # max returns the first of equals
    return Best(first[key], first["epoch"])


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
