"""Functions by their import path, as a configuration names them."""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["import_function"]


def import_function(path: str, what: str) -> Callable[..., Any]:
    """Return the function with an import path, ``mine.margin`` say.

    Not left to the command line: what it imports for an argument that may also be a name, it cannot write into a
    configuration as that name again.

    Args:
        path: Module and function, with a dot between them.
        what: The argument that names it, for the message.

    Raises:
        ValueError: If there is no such module, or nothing callable of that name in it.

    """
    module, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: cannot import '{path}': {error}") from error
    if not callable(function):
        raise ValueError(f"{what}: '{path}' is no function but {type(function).__name__}")
    return function
