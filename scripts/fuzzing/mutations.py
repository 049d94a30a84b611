"""Mutations of files: of their bytes, and of the values in JSON and zip files."""

import io
import json
import random
import zipfile
from typing import Any

_LARGE = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, (2**40).to_bytes(8, "little"), b"\x00" * 8, b"99999999999999")
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**70, -1e308, float("nan"), float("inf"), "", "\n\0", "../../x", "9" * 5000),
    *([], {}, [[[]]], {"config": {}}, [None] * 50),
)


def mutate(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Applies one to three random mutations."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(_MUTATIONS)(content, draw, other)
    return content


def _flip(content: bytes, draw: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random, other: bytes) -> bytes:
    return content[: draw.randint(0, len(content))]


def _tear(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def _double(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    return content[:end] + content[start:]


def _enlarge(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, large = draw.randint(0, len(content)), draw.choice(_LARGE)[: draw.choice((1, 2, 4, 8, 14))]
    return content[:start] + large + content[start + len(large) :]


def _splice(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    first, last = _span(other, draw)
    return content[:start] + other[first:last] + content[end:]


def _revalue(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Replaces a value in JSON, or in the JSON header of a safetensors file."""
    head = content[:8] if content[8:9] == b"{" else b""
    try:
        end = 8 + int.from_bytes(head, "little") if head else len(content)
        text, rest = content[len(head) : end].decode(), content[end:]
        lines = text.splitlines() if text.count("\n{") else [text]
        index = draw.randrange(len(lines))
        lines[index] = json.dumps(_with_another_value(json.loads(lines[index]), draw))
    except (ValueError, IndexError, RecursionError):
        return content
    changed = "\n".join(lines).encode()
    return (len(changed).to_bytes(8, "little") if head else b"") + changed + rest


def _redeclare(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Changes the declared shapes or dtypes of arrays in a zip file."""
    if not content.startswith(b"PK"):
        return content
    result = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                part = old.read(name)
                if draw.random() < 0.5:
                    part = part.replace(b"(6, 8, 8, 3)", b"(%d, 8, 8, 3)" % draw.choice((10**9, 7, 0, 2**62)))
                    part = part.replace(b"|u1", draw.choice((b"|O8", b"<f8", b"|u1", b"|S9")))
                new.writestr(name, part)
    except Exception:  # an earlier mutation has broken the zip file
        return content
    return result.getvalue()


_MUTATIONS = (_flip, _cut, _tear, _double, _enlarge, _splice, _revalue, _revalue, _redeclare)


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(content))
    return start, min(len(content), start + draw.choice((1, 4, 16, 64, len(content))))


def _with_another_value(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return draw.choice(_VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and draw.random() < 0.15:
        return {k: v for k, v in value.items() if k != key}
    value[key] = _with_another_value(value[key], draw)
    return value
