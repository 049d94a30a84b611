"""Functions shared by several test files."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns times and contents of all files in a folder; equal exactly if nothing was touched."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def flip_byte(path: Path, at: int = -1) -> None:
    """Inverts one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def outcome(workdir: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], dict[str, Any]]:
    """Returns a data-free run's results without times: its students' files, records and summary."""
    files = {
        str(path.relative_to(workdir)): path.read_bytes()
        for folder in ("student", "student_best")
        for path in sorted((workdir / folder).iterdir())
    }
    times = ("seconds", "evaluation_seconds", "images_per_s")
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in record.items() if key not in times} for record in records]
    summary = json.loads((workdir / "summary.json").read_text())
    for key in ("wall_s", "images_per_s", "peak_memory_mib"):
        del summary[key]
    return files, records, summary


def tensorboard_events(folder: Path) -> list[Any]:
    """Reads TensorBoard's events from all files of a folder, the oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length, its checksum, event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def tensorboard_values(folder: Path) -> dict[tuple[str, int], Any]:
    """Returns the values of all events, by tag and step."""
    events = tensorboard_events(folder)
    return {(value.tag, event.step): value for event in events for value in event.summary.value}
