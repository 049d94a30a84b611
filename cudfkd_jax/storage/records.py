"""metrics.jsonl: one JSON object an epoch, and what follows from all of them."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import write_bytes

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Adds one line and makes sure it is on the disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(_line(record))
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> list[Record]:
    """The whole lines up to the first damaged one, as a crash leaves it; a missing file is empty."""
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
    """Rewrites the file to its first `epochs` epochs, where a checkpoint stands, and returns them.

    Raises:
        UserError: epochs that the checkpoint has passed are missing; nothing is written.
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
    """The largest value of a metric and the first epoch that has it."""

    value: float
    epoch: int


def best(records: list[Record], key: str) -> Best | None:
    """The largest value of `key` and the first epoch that has it; None where no record has the key."""
    scored = [record for record in records if key in record]
    if not scored:
        return None
    first = max(scored, key=lambda record: record[key])  # max keeps the first of equals
    return Best(first[key], first["epoch"])


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
