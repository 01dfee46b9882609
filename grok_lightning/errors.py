"""From the error messages of libraries to one line that a user can act on."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["UserError", "nearest", "one_line"]


class UserError(Exception):
    """Something that the user can put right; shown as one line, exit code 2."""


# jsonargparse tries every member of a union type and reports each failure with all that was given. What helps is the
# innermost reason; that the value is not None, and its representation, never does.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*|Given value: .*"
    r"|Expected a <class 'NoneType'>|Problem with given class_path .*"
    r"|Not a valid subclass of .*|Subclass types expect one of:|a class path \(str\)|a dict with(out)? .*"
)


def one_line(message: str, known: Iterable[str] = (), classes: Iterable[str] = ()) -> str:
    """Return the reason in an error message, on one line, with what was probably meant.

    Args:
        message: What a library says, possibly over many lines.
        known: Names of options, for a misspelt one.
        classes: Names of classes, likewise.

    """
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    reasons: list[str] = []
    for line in message.splitlines():
        bare = re.sub(r'Parser key "[\w.]+": ?', "", line.strip().removeprefix("- ")).strip()
        bare = re.sub(r"^Call to compute_fn of link .* failed: ", "", bare)
        if bare and not _NOISE.fullmatch(bare) and bare not in reasons:
            reasons.append(bare)
    values = any(re.match(r"Expected a <class '(int|float|bool|str)'>", reason) for reason in reasons)
    for reason in [] if values else reasons:
        if unknown := re.match(r"Expected a dot import path string: (\S+)", reason):
            where = ".".join(keys) + ": " if keys else ""
            return f"{where}there is no class '{unknown[1]}'{nearest(unknown[1], classes)}"
    text = "; ".join(reason.rstrip(".") for reason in reasons) or " ".join(message.split()) or "no reason was given"
    given = re.findall(r"Given value: (?!Namespace|NestedArg)(\S.{0,40})$", message, flags=re.MULTILINE)
    if given and "Expected a" in text and given[-1] not in text:
        text += f", got {given[-1]}"
    if keys and not any(reason.startswith(keys[-1]) for reason in reasons):
        text = f"{'.'.join(keys)}: {text}"
    # Messages of jsonargparse that already say what may have been meant do so by "did you mean".
    if "did you mean" not in text.lower():
        misspelt = re.search(
            r"'([\w.]+)' is not accepted|nrecognized arguments: -*([\w.]+)|does not accept option '([\w.]+)'", text
        )
        if misspelt:
            word = next(group for group in misspelt.groups() if group)
            text += nearest(word, known) or nearest(word.split(".")[0], known)
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known word that is most like ``word``, nothing if none is."""
    known = list(dict.fromkeys(known))
    found = difflib.get_close_matches(word, known, n=1)
    if not found and "." not in word:
        # Options are dotted, and their first part is what is forgotten first.
        found = [option for option in known if difflib.get_close_matches(word, [option.rpartition(".")[2]], n=1)][:1]
    return f"; did you mean {found[0]}?" if found else ""
