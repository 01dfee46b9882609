"""Arithmetic modulo p: the whole table of a binary operation, as rows of tokens."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as nnf

from grok_lightning.imports import import_function
from grok_lightning.tasks.task import Task

__all__ = ["OPERATIONS", "Encoding", "ModularArithmetic", "Operation", "Rule"]

Encoding = Literal["tokens", "one-hot"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

# Any stands for Tensor: the command line takes a callable that returns a class for a recipe of an instance of it.
Operation: TypeAlias = Callable[[Tensor, Tensor, int], Any]
"""``(x, y, p) -> z``: residues ``(N,)``, int64, to integers ``(N,)``, int64, which are then taken mod p."""


def _invertible(y: Tensor, p: int) -> Tensor:
    """Return which of the numbers have an inverse mod p, ``(N,)``, bool: those that share no factor with it."""
    return torch.gcd(y, torch.full_like(y, p)) == 1


def _divide(x: Tensor, y: Tensor, p: int) -> Tensor:
    """Return x times the inverse of y mod p; 0 where y has none."""
    inverses = [pow(number, -1, p) if math.gcd(number, p) == 1 else 0 for number in range(p)]
    return x * torch.tensor(inverses, device=y.device)[y % p]


def _odd_divide(x: Tensor, y: Tensor, p: int) -> Tensor:
    """Return x / y where y, one of 0 to p − 1, is odd, and x − y where it is even."""
    return torch.where(y % 2 == 1, _divide(x, y, p), x - y)


def _everywhere(y: Tensor, p: int) -> Tensor:
    del p
    return torch.ones_like(y, dtype=torch.bool)


@dataclass(frozen=True)
class Rule:
    """A binary operation on residues.

    Attributes:
        formula: As one writes it.
        result: ``(x, y, p) -> z``, to be taken mod p.
        defined: ``(y, p) -> bool``, for which second operands, ``(N,)``, there is a result.

    """

    formula: str
    result: Operation
    defined: Callable[[Tensor, int], Tensor] = _everywhere


OPERATIONS: dict[str, Rule] = {
    "add": Rule("x + y", lambda x, y, p: x + y),
    "subtract": Rule("x − y", lambda x, y, p: x - y),
    "multiply": Rule("x · y", lambda x, y, p: x * y),
    "divide": Rule("x / y", _divide, _invertible),
    "odd_divide": Rule(
        "x / y if y is odd, x − y otherwise", _odd_divide, lambda y, p: _invertible(y, p) | (y % 2 == 0)
    ),
    "square_sum": Rule("x² + y²", lambda x, y, p: x**2 + y**2),
    "square_sum_xy": Rule("x² + xy + y²", lambda x, y, p: x**2 + x * y + y**2),
    "square_sum_xy_x": Rule("x² + xy + y² + x", lambda x, y, p: x**2 + x * y + y**2 + x),
    "cube_xy": Rule("x³ + xy", lambda x, y, p: x**3 + x * y),
    "cube_xy2_y": Rule("x³ + xy² + y", lambda x, y, p: x**3 + x * y**2 + y),
}


class ModularArithmetic(Task):
    """Rows ``a ∘ b =`` of four tokens, label ``a ∘ b`` mod p: every pair of residues for which there is a result.

    Tokens 0 to p − 1 are the residues, p is the operator and p + 1 the equals sign; outputs are the p residues alone.
    Or, for a network that embeds no tokens, rows of 2p numbers, a one-hot and then b one-hot: the input of Gromov 2023
    (arXiv 2301.02679), whose network is an ``MLP`` with the activation ``square`` and no biases.

    The operations are the modular ones of Power et al. 2022 (arXiv 2201.02177, appendix A.1.1), with p = 97 there, and
    their code's x · y; p = 113 is that of Varma et al. 2023 (arXiv 2309.02390).

    ====================  ====================================  ====================
    name                  formula mod p                         rows for a prime p
    ====================  ====================================  ====================
    ``add``               x + y                                 p²
    ``subtract``          x − y                                 p²
    ``multiply``          x · y                                 p²
    ``divide``            x / y                                 p (p − 1), no y = 0
    ``odd_divide``        x / y if y is odd, x − y otherwise    p²
    ``square_sum``        x² + y²                               p²
    ``square_sum_xy``     x² + xy + y²                          p²
    ``square_sum_xy_x``   x² + xy + y² + x                      p²
    ``cube_xy``           x³ + xy                               p²
    ``cube_xy2_y``        x³ + xy² + y                          p²
    ====================  ====================================  ====================

    p need not be prime. Where it is composite, a row that divides is kept only if its divisor has an inverse, that is,
    shares no factor with p: ``divide`` then has p times as many rows as there are such divisors, fewer than p (p − 1),
    and ``odd_divide`` is without the other odd y. Odd and even are said of y in 0 to p − 1; so 0 is even.

    Args:
        operation: A name of the table; or, for an operation of one's own, a function ``(x, y, p) -> z`` of int64
            residues ``(N,)`` to int64 ``(N,)``, defined for all pairs, by import path on the command line.
        p: The modulus, at least 2.
        encoding: ``tokens`` or ``one-hot``. Which pairs a seed trains on is the same in both.

    Attributes:
        size: Number of rows.

    Raises:
        ValueError: If p is below 2, there is no such operation or encoding, or an operation of one's own returns
            something else.

    """

    def __init__(self, operation: str | Operation = "add", p: int = 113, encoding: Encoding = "tokens") -> None:
        if p < 2:
            raise ValueError(f"ModularArithmetic: p must be at least 2, got p = {p}")
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding: expected {' or '.join(map(repr, ENCODINGS))}, got {encoding!r}")
        self.operation = operation
        self.p = p
        self.encoding: Encoding = encoding
        self._rule = _rule(operation)
        self.n_inputs = 4 if encoding == "tokens" else 2 * p
        self.n_tokens = p + 2 if encoding == "tokens" else 0
        self.n_outputs = p
        # Here, not when rows are first labelled: a function that is none is to be known before anything starts.
        self.size = len(self.label(self.table()))

    def label(self, inputs: Tensor) -> Tensor:
        """Return the results ``(N,)``, int64 in [0, p), of rows ``(N, n_inputs)`` of the table."""
        if self.encoding == "tokens":
            x, y = inputs[:, 0], inputs[:, 2]
        else:
            x, y = (half.argmax(dim=1) for half in (inputs[:, : self.p], inputs[:, self.p :]))
        try:
            result = self._rule.result(x, y, self.p)
        except Exception as error:
            raise ValueError(f"operation: {self._rule.formula} fails as (x, y, p) -> z: {error}") from error
        if not isinstance(result, Tensor) or result.dtype != torch.int64 or result.shape != x.shape:
            got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"ModularArithmetic: expected {self._rule.formula} to return torch.int64 {tuple(x.shape)}, got {got}"
            )
        return result % self.p

    def table(self) -> Tensor:
        """Return all rows ``(size, n_inputs)``, a varying slowest: int64 tokens, or float32 zeros and ones."""
        x, y = self._pairs()
        if self.encoding == "one-hot":
            return torch.cat([nnf.one_hot(x, self.p), nnf.one_hot(y, self.p)], dim=1).to(torch.float32)
        return torch.stack([x, torch.full_like(x, self.p), y, torch.full_like(x, self.p + 1)], dim=1)

    def mirror(self) -> Tensor:
        """Return where in the table each row stands with its operands swapped, ``(size,)``; −1 where it does not.

        Whatever the operation: it need not be commutative.
        """
        x, y = self._pairs()
        rows = torch.full((self.p, self.p), -1)
        rows[x, y] = torch.arange(len(x))
        return rows[y, x]

    def _pairs(self) -> tuple[Tensor, Tensor]:
        x, y = torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p)).unbind(dim=1)
        kept = self._rule.defined(y, self.p)
        return x[kept], y[kept]


def _rule(operation: str | Operation) -> Rule:
    if callable(operation):
        return Rule(getattr(operation, "__name__", type(operation).__name__), operation)
    if operation in OPERATIONS:
        return OPERATIONS[operation]
    if "." in str(operation):
        return _rule(import_function(operation, "operation"))
    near = difflib.get_close_matches(str(operation), OPERATIONS, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)} or a function, got '{operation}'{meant}")
