"""Small functions that several test files call."""

import hashlib
from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of everything in a folder; equal before and after exactly if nothing was touched."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def flip_byte(path: Path, at: int = -1) -> None:
    """Inverts one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
