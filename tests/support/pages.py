"""README.md and the pages of docs/: their commands, programs, names and links."""

import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
# Endings of the names of files that a run or a user makes.
_FILES = r"\.(json|jsonl|html|log|csv|md|png|svg|pth|pt|safetensors|msgpack|stablehlo|npz|txt|py|ipynb)$"


@functools.cache
def text_of(page: Path) -> str:
    """Returns the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks in a language, such as "python"."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Returns the command lines of a page; a line that ends in a backslash goes on in the next."""
    return [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]


def codes(page: Path) -> list[str]:
    """Returns what stands between single backticks outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)


def dotted_names(page: Path) -> set[str]:
    """Returns the dotted names of a page: settings, modules and what they hold, and not files."""
    found = {re.split("[=:]", code.removeprefix("--config."))[0] for code in codes(page)}
    return {name for name in found if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and not re.search(_FILES, name)}


def links(page: Path) -> list[tuple[str, str]]:
    """Returns the file and the anchor of each link and picture that leads to a file of the repository."""
    found = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text_of(page))
    return [(file, anchor) for file, anchor in found if not file.startswith("http")]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the documentation site make them."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
