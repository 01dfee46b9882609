"""The claims as tables in the terminal, and their figures as files."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grok_callbacks.files import WriteError, replacing
from grok_lightning.theory.claims import Claim, Line

__all__ = ["HOW_TO_READ", "check_claims"]

HOW_TO_READ = "A line that begins with 'without' holds where the claim is false once that hypothesis is dropped."

DPI = 150
WIDTH = 120  # Where the output is no terminal.


def check_claims(
    claims: Sequence[Claim], directory: Path, seed: int = 0, statements: bool = False, console: Console | None = None
) -> bool:
    """Check claims, printing the table of each once it is known, and write their figures.

    Args:
        claims: Which.
        directory: Where figures go, as ``<figure>.png``; made when there is one to be written.
        seed: Of their random draws, at least 0.
        statements: Whether each claim's statement, hypotheses and source are printed too.
        console: Where to print; the terminal's standard output if ``None``.

    Returns:
        Whether every line holds.

    Raises:
        OSError: If a figure cannot be written; after all else.

    """
    if console is None:
        console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=WIDTH)
    lines: list[Line] = []
    unwritten: OSError | None = None
    for claim in claims:
        own = claim.check(seed)
        lines += own
        console.print(Text(f"{claim.name}: {claim.title}", style="bold"))
        if statements:
            paragraphs = claim.statement.split("\n\n")[1:]
            console.print(Text("\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)))
        console.print(_table(own))
        for name, draw in claim.figures.items():
            try:
                console.print(Text(str(_write(draw(), directory / f"{name}.png"))), soft_wrap=True)
            except WriteError as error:
                unwritten = error  # told at the end: tables do not need it
        console.print()
    if any(line.is_without for line in lines):
        console.print(HOW_TO_READ)
    n_wrong = sum(not line.holds for line in lines)
    said = f"all {len(lines)} lines hold" if not n_wrong else f"{n_wrong} of {len(lines)} lines do NOT hold"
    console.print(said)
    if unwritten is not None:
        raise unwritten
    return not n_wrong


def _table(lines: Sequence[Line]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("claim", overflow="fold")
    for name in ("predicted", "computed", "error", "allowed"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("holds", overflow="fold")
    for line in lines:
        shown = [_number(line.predicted), _number(line.computed)]
        cells = [line.what, *shown, *(f"{value:.1g}" for value in (line.error, line.allowed))]
        table.add_row(*map(Text, cells), "yes" if line.holds else Text("NO", style="bold red"))
    return table


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _write(figure: Figure, path: Path) -> Path:
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png", dpi=DPI)
    return path
