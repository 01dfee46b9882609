"""``python -m grok_lightning theory``."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from grok_lightning.errors import UserError, nearest
from grok_lightning.theory import CLAIMS, Claim
from grok_lightning.theory.table import HOW_TO_READ, check_claims

__all__ = ["run"]

OPTIONS = ("--help", "--seed", "--output")
DESCRIPTION = """Check what the papers prove, and some things that they do not.

Of each claim a table: what it predicts, what was computed, and how far the two are apart;
and figures. Errors are absolute; what is allowed is what rounding may cause, of the draw shown.
{how_to_read}
Of claims that are named, statement, hypotheses and source too.
The exit code is 1 if a line does not hold, 2 if something was refused or cannot be written."""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"theory: {message}")


def run(argv: Sequence[str], program: str, directory: Path) -> bool:
    """Check claims, and print and draw what came out.

    Args:
        argv: Names of claims, all of them if there is none, and options.
        program: What was typed before these, for the help.
        directory: Where figures go by default.

    Returns:
        Whether every line holds.

    Raises:
        UserError: If there is no such claim or option, or something cannot be written.
        SystemExit: After help.

    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may know no Greek
    parser = _Parser(
        prog=program,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION.format(how_to_read=HOW_TO_READ),
        epilog="claims:\n" + "\n".join(f"  {claim.name}\n      {claim.title}" for claim in CLAIMS),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="claims; all of them if none is named")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws, at least 0 (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=directory, metavar="FOLDER", help=f"where figures go (default: {directory})"
    )
    arguments, strange = parser.parse_known_args(argv)
    if options := [word for word in strange if word.startswith("-")]:
        parser.error(f"there is no option '{options[0]}'{nearest(options[0], OPTIONS)}")
    if arguments.seed < 0:
        parser.error(f"--seed: expected at least 0, got {arguments.seed}")
    unknown = [name for name in arguments.names if name not in {claim.name for claim in CLAIMS}]
    if unknown:
        parser.error(f"there is no claim '{unknown[0]}'{_meant(unknown[0])}")
    chosen: list[Claim] = [claim for claim in CLAIMS if claim.name in arguments.names or not arguments.names]
    try:
        return check_claims(chosen, arguments.output, arguments.seed, statements=bool(arguments.names))
    except OSError as error:
        raise UserError(f"theory: cannot write {error.filename or 'the output'}: {error.strerror}") from error


def _meant(name: str) -> str:
    """Say which claim may have been meant: one that contains the name, as "D.4", or is spelt like it; or all."""
    names = [claim.name for claim in CLAIMS]
    plain = "".join(filter(str.isalnum, name.lower()))
    within = [known for known in names if plain and plain in known.replace("_", "")]
    if within:
        return f"; did you mean {' or '.join(within)}?"
    return nearest(name, names) or f"; expected some of {', '.join(names)}"
