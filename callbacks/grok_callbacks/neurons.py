"""The neurons between two layers of any model, and its logits without some of them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from .functional.neuron_norms import neuron_norms
from .functional.sparse_subnetwork import (
    Sizes,
    first_sizes,
    in_top,
    linear_search,
    predictions,
    prefix_counts,
    rank_neurons,
)
from .monitor import find_submodule, find_weight
from .protocols import HasMembers

__all__ = ["Neurons", "tell_method", "uncompiled", "warn_of_misfits"]

AT_ONCE = 2**18
"""Activations worked on at a time: about what stays in a processor's cache."""

SUMS, PASSES = "sums over neurons", "masked forward passes"

CHECKED_ROWS = 32
"""Rows on which sums over neurons are compared with the forward pass of a network without some of them."""

CHECKED_ROWS_OF_FOUND = 128
"""Rows on which subnetworks that were found are; all, if there are fewer."""

CHECKED_SETS = 4
"""Subnetworks of many that are compared with their own forward passes."""


class _NotLinear(Exception):  # noqa: N818 - never leaves this file
    """Sums over neurons differ from what the network computes."""


@dataclass(frozen=True)
class _Readout:
    """What neurons add to the logits: ``weight (E, C, neuron)``; and what is there without them, ``rest (E, 1, C)``.

    ``rest`` is ``None`` where it differs from row to row.
    """

    weight: Tensor
    rest: Tensor | None


@final
class Neurons:
    """The activations that ``layer`` leads to and ``next_layer`` reads, for the weights that a model has now.

    A neuron is removed by setting its activation to 0 where ``next_layer`` reads it, as Merrill, Tsilivis, Shukla 2023
    (arXiv 2303.11873, section 2.1) do. Where logits are sums over neurons, every subnetwork follows from one forward
    pass. That they are is not taken for granted: every row's logits are compared with their sum; on some rows, the sums
    without half of the neurons, and some of the subnetworks asked for, with forward passes of their own; the smallest
    subnetworks found, and those smaller by one, on many rows. Where they are not (a nonlinearity or a normalisation
    comes after), every subnetwork gets a forward pass of its own, and ``linear`` becomes False.

    Call it in eval mode, without gradients. Logits ``(B,)`` of a model without an output axis count as ``(B, 1)``.

    Args:
        pl_module: The model.
        layer: Dotted name of the layer whose incoming weights rank the neurons.
        next_layer: Dotted name of the module whose input they are, neurons along the last axis.
        network: Dotted name of the module that maps inputs to logits; the LightningModule itself if ``None``.
        at_last_position: Whether activations ``(B, T, neuron)`` and logits ``(B, T, C)`` are read, and neurons removed,
            at the last of T positions.

    Attributes:
        n_neurons: Their number.
        names: Of the two, for messages.
        linear: Whether logits are sums over neurons, as far as has been seen.

    Raises:
        ValueError: If a name does not exist, or the layer has no weight.

    """

    def __init__(
        self,
        pl_module: LightningModule,
        layer: str,
        next_layer: str,
        network: str | None = None,
        at_last_position: bool = False,
    ) -> None:
        self._at_last_position = at_last_position
        self._members = pl_module.n_members if isinstance(pl_module, HasMembers) else None
        self._weight = find_weight(pl_module, layer)
        self._layer = find_submodule(pl_module, layer)
        self._reader = find_submodule(pl_module, next_layer, "next_layer")
        self._network: nn.Module = pl_module if network is None else find_submodule(pl_module, network, "network")
        self.names = f"{layer} and {next_layer}"
        # A plain network in a module with members is a population of one.
        self._plain = self._members is None or self._layer.weight.ndim == 2
        self._logits_lead = self._members is not None and (not self._plain or self._network is pl_module)
        self.n_neurons = self._weight.shape[1]
        self.linear = True
        self._known: _Readout | None = None

    def norms(self) -> Tensor:
        """Return the L2 norm of every neuron's incoming weights, ``(E, neuron)``."""
        return neuron_norms(self._weight.detach(), None)

    def sizes(self, inputs: Tensor, targets: Tensor) -> tuple[Sizes, Tensor]:
        """Return the effective sparsity of every member, ``(E,)``, and the ranking of its neurons, ``(E, neuron)``.

        Args:
            inputs: As the model takes them, ``(E, B, ...)`` or ``(B, ...)``.
            targets: ``(E, B)`` or ``(B,)``.

        """
        order = rank_neurons(self.norms())
        inputs = self._without_members(inputs, targets)
        labels = targets.expand(len(order), -1) if targets.ndim == 1 else targets
        try:
            readout = self._readout_of(inputs, targets)
            counts = torch.zeros(2, len(order), self.n_neurons + 1, dtype=torch.int64, device=order.device)
            start = 0
            for piece in self._pieces(inputs, targets):
                activations, rest = self._sums(piece, readout)
                rows = slice(start, start := start + rest.shape[1])
                counts += prefix_counts(activations, readout.weight, rest, order, labels[:, rows])
            sizes = first_sizes(counts, labels.shape[1])
            self._check_sizes(inputs, targets, readout, order, sizes)
            return sizes, order
        except _NotLinear:
            self.linear = False
            return self._sizes_one_by_one(inputs, targets, order, labels), order

    def predictions(self, inputs: Tensor, targets: Tensor, sets: Tensor) -> Tensor:
        """Return what subnetworks predict, ``(E, set, B)``; see :func:`predictions`.

        Args:
            inputs: As the model takes them, ``(E, B, ...)`` or ``(B, ...)``.
            targets: ``(E, B)`` or ``(B,)``; only their shape counts.
            sets: Neurons that each subnetwork keeps, ``(E, set, neuron)``, bool.

        """
        inputs = self._without_members(inputs, targets)
        try:
            readout = self._readout_of(inputs, targets)
            # (E, set, C, neuron) as one matrix: all subnetworks of a row are one product.
            self._check_sets(inputs[self._some_rows(targets, CHECKED_ROWS)], readout, sets[:, :CHECKED_SETS])
            kept = torch.where(sets.unsqueeze(-2), readout.weight.unsqueeze(1), 0)
            found = []
            for piece in self._pieces(inputs, targets):
                activations, rest = self._sums(piece, readout)
                logits = (activations @ kept.flatten(1, 2).mT).reshape(*rest.shape[:2], *kept.shape[1:3])
                found.append(predictions(logits + rest.unsqueeze(-2)).mT)
            return torch.cat(found, dim=-1)
        except _NotLinear:
            self.linear = False
            return torch.stack([self._predictions_alone(inputs, targets, keep) for keep in sets.unbind(dim=1)], dim=1)

    def look(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations ``(E, B, ..., neuron)`` and logits ``(E, B, C)``.

        Args:
            inputs: As the model takes them, ``(E, B, ...)`` or ``(B, ...)``.

        """
        kept: list[Tensor] = []

        def keep(activations: Tensor) -> Tensor:
            self._check(activations)
            kept.append(activations.unsqueeze(0) if self._plain else activations)
            return activations

        logits = self._call(inputs, keep)
        return kept[0], logits

    def readout(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return what one unit of each neuron's activation adds to the logits, ``(E, C, neuron)``.

        ``None`` where logits are not sums over neurons; ``linear`` becomes False then.

        Args:
            inputs: Rows to try it on, as the model takes them, ``(E, B, ...)`` or ``(B, ...)``.
            targets: ``(E, B)`` or ``(B,)``; only their shape counts.

        """
        try:
            return self._readout_of(self._without_members(inputs, targets), targets).weight
        except _NotLinear:
            self.linear = False
            return None

    def _sizes_one_by_one(self, inputs: Tensor, targets: Tensor, order: Tensor, labels: Tensor) -> Sizes:
        n_outputs = self._logits(inputs[self._some_rows(targets, 1)], None).shape[-1]

        def predict_top(size: int) -> Tensor:
            return self._predictions_alone(inputs, targets, in_top(order, torch.full((len(order),), size)))

        return linear_search(predict_top, self.n_neurons, labels, n_outputs)

    def _predictions_alone(self, inputs: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
        """Return ``(E, B)`` of one subnetwork, by forward passes of its own."""
        pieces = self._pieces(inputs, targets)
        return torch.cat([predictions(self._logits(piece, keep)) for piece in pieces], dim=1)

    def belong_together(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether ``next_layer`` reads, neuron by neuron, what ``layer`` puts out: tried on one row.

        A normalisation in between is enough for False, and so is another layer in between, whose neurons are others.
        """
        inputs = self._without_members(inputs, targets)[self._some_rows(targets, 1)]
        half = torch.arange(self.n_neurons, device=inputs.device) % 2 == 0
        read: list[Tensor] = []

        def keep(activations: Tensor) -> Tensor:
            self._check(activations)
            read.append(activations)
            return activations

        def shift(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.where(half, output + 1, output) if output.shape[-1] == self.n_neurons else output

        self._call(inputs, keep)
        handle = self._layer.register_forward_hook(shift)
        try:
            self._call(inputs, keep)
        finally:
            handle.remove()
        before, after = (activations[..., ~half] for activations in read)
        return bool(torch.allclose(before, after, rtol=0, atol=0, equal_nan=True))

    def look_like_probabilities(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether a single output lies between 0 and 1 on every one of some rows: tried on a few."""
        inputs = self._without_members(inputs, targets)[self._some_rows(targets, CHECKED_ROWS)]
        logits = self._logits(inputs, None)
        return logits.shape[-1] == 1 and bool(((logits > 0) & (logits < 1)).all())

    # ---- how the model is called ---------------------------------------------------------------------------------

    def _without_members(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs.squeeze(0) if self._plain and self._members is not None and targets.ndim == 2 else inputs

    def _row_dim(self, targets: Tensor) -> int:
        return 0 if self._plain else targets.ndim - 1

    def _some_rows(self, targets: Tensor, at_most: int) -> tuple[slice, ...]:
        """Return the index of rows that lie evenly among all."""
        every = -(-targets.shape[-1] // at_most)
        return (*[slice(None)] * self._row_dim(targets), slice(None, None, every))

    def _pieces(self, inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        rows = max(1, AT_ONCE // (self.n_neurons * len(self._weight)))
        return iter(torch.split(inputs, rows, dim=self._row_dim(targets)))

    def _call(self, inputs: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return logits ``(E, B, C)`` of the model with other activations."""
        called = False

        def before(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
        ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            nonlocal called
            called = True
            if args:
                return (changed(args[0]), *args[1:]), kwargs
            name = next(iter(kwargs))
            return args, kwargs | {name: changed(kwargs[name])}

        def changed(activations: Tensor) -> Tensor:
            if not self._at_last_position or activations.ndim != (3 if self._plain else 4):
                return change(activations)
            last = activations[..., -1, :]
            new = change(last)
            return activations if new is last else torch.cat([activations[..., :-1, :], new.unsqueeze(-2)], dim=-2)

        handle = self._reader.register_forward_pre_hook(before, with_kwargs=True)
        try:
            with uncompiled():
                logits: Tensor = self._network(inputs)
        finally:
            handle.remove()
        if not isinstance(logits, Tensor):
            raise ValueError(f"network: expected its output to be logits, got {type(logits).__name__}")
        if not called:
            raise ValueError(f"next_layer: the model's forward pass does not call it, or not as a module: {self.names}")
        rank = 3 if self._logits_lead else 2
        if self._at_last_position and logits.ndim == rank + 1:
            logits = logits[..., -1, :]
        if logits.ndim == rank - 1:
            logits = logits.unsqueeze(-1)
        if logits.ndim != rank:
            axes = "(E, B, C)" if self._logits_lead else "(B, C)"
            raise ValueError(f"network: expected logits {axes}, got {tuple(logits.shape)}")
        return logits if self._logits_lead else logits.unsqueeze(0)

    def _logits(self, inputs: Tensor, keep: Tensor | None) -> Tensor:
        """Return the logits with the neurons in ``keep (E, neuron)`` alone, with all if ``None``."""

        def change(activations: Tensor) -> Tensor:
            self._check(activations)
            if keep is None:
                return activations
            shape = [1] * activations.ndim
            shape[-1] = self.n_neurons
            if not self._plain:
                shape[0] = len(keep)
            return torch.where(keep.reshape(shape), activations, 0)

        return self._call(inputs, change)

    def _check(self, activations: Tensor) -> None:
        if activations.shape[-1] != self.n_neurons:
            raise ValueError(
                f"next_layer: expected it to read {self.n_neurons} neurons along the last axis, "
                f"got an input of {tuple(activations.shape)}: {self.names}"
            )

    # ---- logits as sums over neurons -----------------------------------------------------------------------------

    def _readout_of(self, inputs: Tensor, targets: Tensor) -> _Readout:
        """Return the readout, which no row changes: computed once."""
        if self._known is None:
            one, few = (inputs[self._some_rows(targets, n)] for n in (1, CHECKED_ROWS))
            self._known = self._readout(one, few, self._row_dim(targets))
        return self._known

    def _readout(self, one: Tensor, few: Tensor, row_dim: int) -> _Readout:
        """Return what a neuron adds to the logits of one row, checked on a few against networks without half of them.

        Raises:
            _NotLinear: If the check fails.

        """
        kept: list[Tensor] = []

        def keep_leaf(activations: Tensor) -> Tensor:
            self._check(activations)
            if activations.ndim != (2 if self._plain else 3):
                raise _NotLinear  # more than one position a row
            kept.append(activations.detach().requires_grad_())
            return kept[-1]

        with torch.enable_grad():
            logits = self._call(one, keep_leaf)
            if logits.shape[-1] > 1:
                # As many copies of the row as there are logits: one backward pass gives the slope of each.
                kept.clear()
                logits = self._call(one.repeat_interleave(logits.shape[-1], dim=row_dim), keep_leaf)
            if not logits.requires_grad or kept[0].shape[:-1] != logits.shape[1 if self._plain else 0 : -1]:
                raise _NotLinear
            own = logits.diagonal(dim1=-2, dim2=-1).sum()
            slopes = torch.autograd.grad(own, kept[0], allow_unused=True, materialize_grads=True)[0]
        weight = slopes.unsqueeze(0) if self._plain else slopes
        readout = _Readout(weight, None)
        even = (torch.arange(self.n_neurons, device=weight.device) % 2 == 0).expand(len(weight), 1, -1)
        rest = self._check_sets(few, readout, torch.cat([even, ~even], dim=1))
        same = bool((rest == rest[:, :1]).all())
        return _Readout(weight, rest[:, :1] if same else None)

    def _sums(self, inputs: Tensor, readout: _Readout) -> tuple[Tensor, Tensor]:
        """Return activations ``(E, B, neuron)`` and the logits without any neuron, ``(E, B, C)``.

        Raises:
            _NotLinear: If logits are not their sum on some row.

        """
        kept: list[Tensor] = []

        def keep(activations: Tensor) -> Tensor:
            kept.append(activations.unsqueeze(0) if self._plain else activations)
            return activations

        logits = self._call(inputs, keep)
        activations = kept[0]
        total = activations @ readout.weight.mT
        if readout.rest is not None:
            rest = readout.rest.expand_as(logits)
        else:
            rest = self._logits(inputs, torch.zeros_like(readout.weight[:, 0], dtype=torch.bool))
        self._compare(total + rest, logits, activations, readout.weight)
        return activations, rest

    def _check_sizes(self, inputs: Tensor, targets: Tensor, readout: _Readout, order: Tensor, sizes: Sizes) -> None:
        """Compare the subnetworks that were found, and those smaller by one, with forward passes.

        Raises:
            _NotLinear: If one differs.

        """
        found = torch.stack([sizes.by_predictions, sizes.by_accuracy])
        tried = {tuple(size.tolist()): size for size in (*found, *(found - 1).clamp(min=0))}
        sets = torch.stack([in_top(order, size) for size in tried.values()], dim=1)
        many = self._some_rows(targets, CHECKED_ROWS_OF_FOUND)
        for piece in self._pieces(inputs[many], targets):
            self._check_sets(piece, readout, sets)

    def _check_sets(self, inputs: Tensor, readout: _Readout, sets: Tensor) -> Tensor:
        """Compare subnetworks with their forward passes; return the logits without any neuron.

        Raises:
            _NotLinear: If one differs.

        """
        activations, rest = self._sums(inputs, readout)
        for keep in sets.unbind(dim=1):
            sums = rest + activations @ torch.where(keep.unsqueeze(1), readout.weight, 0).mT
            self._compare(sums, self._logits(inputs, keep), activations, readout.weight)
        return rest

    @staticmethod
    def _compare(sums: Tensor, logits: Tensor, activations: Tensor, weight: Tensor) -> None:
        tolerance = torch.finfo(logits.dtype).eps ** 0.5
        difference = (sums - logits).abs()
        if bool((difference <= tolerance * logits.abs()).all()):
            return
        # Large terms of both signs may cancel, and a network that has diverged has no logits to be compared.
        scale = activations.abs() @ weight.abs().mT + logits.abs()
        if bool((difference > tolerance * scale)[difference.isfinite()].any()):
            raise _NotLinear


def uncompiled() -> AbstractContextManager[object]:
    """Within, modules run as they are written: compiled ones pass over hooks."""
    # Without dynamo nothing is compiled, and loading it takes a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def warn_of_misfits(neurons: Neurons, inputs: Tensor, targets: Tensor) -> None:
    """Warn of what would be measured without an error, and mean something else than was asked for."""
    if neurons.look_like_probabilities(inputs, targets):
        rank_zero_warn(
            "every output lies between 0 and 1: if these are probabilities, all predictions are the same, for what is "
            "looked at is the sign of a logit; name the part of the model that puts out logits (network)"
        )
    if not neurons.belong_together(inputs, targets):
        rank_zero_warn(
            f"what the second of {neurons.names} reads is not, neuron by neuron, what the first puts out: unless there "
            "is a mere normalisation in between, other neurons are removed than are ranked"
        )


def tell_method(neurons: Neurons, told: str) -> str:
    """Return how subnetworks were computed, for a record; warn when it is the slow way and was not told before."""
    if neurons.linear:
        return told or SUMS
    if told != PASSES:
        rank_zero_warn(
            f"the logits are not sums over the neurons between {neurons.names}: every subnetwork takes a forward pass "
            "of its own, which is slow; measure rarely, or give fewer rows (limit)"
        )
    return PASSES
