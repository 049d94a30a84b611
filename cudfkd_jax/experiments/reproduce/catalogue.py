"""All entries by name."""

from collections.abc import Sequence

from cudfkd_jax.experiments.reproduce.ablations import ABLATIONS
from cudfkd_jax.experiments.reproduce.entry import SCALES, Entry
from cudfkd_jax.experiments.reproduce.figures import FIGURES
from cudfkd_jax.experiments.reproduce.short import SHORT
from cudfkd_jax.experiments.reproduce.tables import TABLES
from cudfkd_jax.runtime.errors import UserError, choose

ENTRIES = {entry.name: entry for entry in (*TABLES, *FIGURES, *ABLATIONS, *SHORT)}
ALL = "all"


def select(names: Sequence[str], scale: str) -> list[Entry]:
    """Returns the named entries, in the paper's order; `all` selects those available at the scale.

    Raises:
        UserError: an entry or the scale is unknown, or an entry is not available at the scale.
    """
    choose("--scale", scale, SCALES)
    if not names:
        raise UserError(f"no table or figure; name some, or {ALL} (--list shows them)")
    for name in names:
        choose("table or figure", name, (*ENTRIES, ALL))
        if name != ALL and scale not in ENTRIES[name].scales:
            has = ", ".join(ENTRIES[name].scales)
            raise UserError(f"{name} has no --scale={scale}; it has {has}")
    return [e for e in ENTRIES.values() if scale in e.scales and (e.name in names or ALL in names)]


def listing() -> str:
    """Lists every entry with its runs at each scale."""
    lines = []
    for entry in ENTRIES.values():
        scales = ", ".join(f"{scale} ({len(setting.runs)})" for scale, setting in entry.scales.items())
        lines.append(f"{entry.name:8}{entry.title.partition(': ')[2]:48}{scales}")
    return "\n".join([f"{'':8}{'':48}scales (runs)", *lines])
