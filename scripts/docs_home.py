"""Makes README.md the home page of the documentation site; MkDocs calls it (`hooks` of mkdocs.yml)."""

import re
from pathlib import Path
from typing import Any

_README = Path(__file__).parents[1] / "README.md"
_HOME = "index.md"


def on_files(files: Any, config: Any) -> Any:
    """Adds the home page to the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, _HOME, content=home(_README.read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads a page's links to the README to the home page."""
    return markdown.replace("](../README.md", f"]({_HOME}")


def home(readme: str) -> str:
    """Returns the README with links from the site's root; files outside the site are named instead of linked."""
    inside = re.sub(r"\]\(docs/", "](", readme)
    pages = r"(?!(?:\w+\.md|images/[^)]+)(?:#[^)]*)?\))(?!https?:)"
    outside = rf"(?<!!)\[([^\]]+)\]\({pages}([^)]+)\)"
    top_level = r"\[([^\]]+)\]\(((?:CONTRIBUTING|CHANGELOG)\.md|LICENSE)\)"
    return re.sub(outside, r"\1 (`\2`)", re.sub(top_level, r"`\2`", inside))
