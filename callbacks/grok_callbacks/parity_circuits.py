"""Which circuit a network that has learnt a sparse parity computes it with, over time."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from .functional.parity_circuits import (
    CONSTRUCTIONS,
    KINDS,
    MOST_PROVED,
    Likeness,
    bias_ratios,
    circuit_of,
    constructions,
    count_neurons,
    efficiency,
    likeness,
    neuron_kinds,
    off_support,
    patterns_fired_on,
    sign_patterns,
)
from .functional.sparse_subnetwork import in_top
from .members import n_members_in_all, own_members
from .monitor import Monitor, find_submodule, find_weight
from .neurons import Neurons
from .protocols import HasSecret, HasTasks
from .rows import TrainingRows
from .schedule import LogSpaced, Schedule
from .sparse_subnetwork import RULES, Rule, check_rule

__all__ = ["ParityCircuits"]

MOST_BITS = 10
"""Secret bits beyond which there are too many sign patterns."""

PROBES = 32
"""Rows on which it is tried whether neurons are what they are taken for."""

DEAF = 5
"""How many times the norm of other weights, over that on the secret bits, has to be what it is by chance for these not
to be read. Trained on other bits, networks of 40 bits come to about 20; those that have learnt nothing stay near 1."""


@final
class ParityCircuits(Monitor):
    """Compares the neurons that survive with the circuits that are known to compute the parity of k secret bits.

    Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, Appendix D) prove that 2^k ReLU neurons (Proposition 1) and, for
    k = 3, six (2) and four (3) compute it, and see sizes of 6 and 8 in what they train; they do not look at the
    weights. Here the neurons of the active subnetwork (see :class:`SparseSubnetworkExtractor`) are taken apart by the
    signs of their weights on the secret bits, and compared with these three circuits and with three of ours
    (:func:`grok_callbacks.functional.nearer_half`, :func:`grok_callbacks.functional.one_star`,
    :func:`grok_callbacks.functional.two_stars`), and with the least norm that a parity costs. The network is
    ``f(x) = Σ_j u_j relu(w_j · x + b_j)`` with one logit, rows are bits −1 and +1; a constant beside the sum, such as
    an output bias, is not looked at.

    Leaves, with dimensions ``(step, member, ...)``, float64, all NaN where the network has diverged:

    - ``size``: number of surviving neurons.
    - ``neurons`` ``(kind, pattern)``: how many of them have each of the 2^k sign patterns, such as ``+-+``, by kind
      (:func:`grok_callbacks.functional.neuron_kinds`): the output has the ``same`` sign as the product of the weights,
      or the ``opposite`` one, and helps; or ``neither``. One with a weight of 0 has no pattern.
    - ``fires`` ``(kind)``: on how many patterns a neuron fires, on average over those of a kind; NaN without any.
    - ``bias`` ``(kind)``: likewise, its bias over the mean size of its weights on the secret bits.
    - ``off_support``: norm of all their weights on the other bits over that on the secret bits.
    - ``efficiency``: the least norm with which their mean margin can be had, over theirs: 1 at most
      (:func:`grok_callbacks.functional.efficiency`); NaN if k is above 4.
    - ``found``, ``covered`` and ``likeness`` ``(construction)``: how much of the network is in a construction, how much
      of the construction is in the network, and their harmonic mean, each from 0 to 1
      (:func:`grok_callbacks.functional.likeness`). NaN for all but ``proposition_1`` and ``nearer_half`` if k is not
      3. Chance is far above 0: for k = 3, seven neurons drawn from an initial network of 1,000 have a likeness of
      0.53-0.72 on average, by construction, and of 0.89 at most (200 draws); all 1,000 together 0.73-0.89.

    Loggers get, as means over members, the number of ``patterns`` that have a neuron, ``off_support``, ``efficiency``
    where it is known, and the ``likeness`` to each construction that there is.

    Warns once where the neurons of no member respond to the secret bits, which then are hardly those of the network.

    Args:
        layer: Dotted name of the layer that reads the rows and whose neurons they are; it has a ``weight`` of
            ``(out, in)``, or ``(E, out, in)`` in a module with members, and may have a ``bias``.
        next_layer: Dotted name of the module that reads the neurons' activations, along the last axis of its input.
        secret: Positions of the k secret bits, 1 to 10 of them; if ``None``, each member's own, which the data module
            has to know (:class:`grok_callbacks.protocols.HasTasks`).
        rule: How the active subnetwork is found, ``predictions`` or ``accuracy``.
        schedule: When to measure.
        network: Dotted name of the module that maps inputs to logits; the LightningModule itself if ``None``.
        rows: Import path of a function ``(trainer, pl_module, split) -> (inputs, targets)``; by default rows come from
            the data module, or from the dataset of the training loader.
        limit: Largest number of rows of a member; all of them if ``None``.
        name: Name of the record's group and prefix of logged scalars.

    Raises:
        ValueError: If an argument is out of range. When fitting starts, if there is no such layer, or no secret for it;
            at the first measurement, if neurons or logits are of another form.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "size": (),
        "neurons": ("kind", "pattern"),
        "fires": ("kind",),
        "bias": ("kind",),
        "off_support": (),
        "efficiency": (),
        "found": ("construction",),
        "covered": ("construction",),
        "likeness": ("construction",),
    }

    def __init__(
        self,
        layer: str,
        next_layer: str,
        secret: Sequence[int] | None = None,
        rule: Rule = "predictions",
        schedule: Schedule = LogSpaced(20),  # noqa: B008 - a frozen value
        network: str | None = None,
        rows: str | None = None,
        limit: int | None = None,
        name: str = "parity_circuits",
    ) -> None:
        super().__init__(schedule, name)
        check_rule(rule)
        if secret is not None:
            _check_secret(secret)
        self.layer = layer
        self.next_layer = next_layer
        self.secret = None if secret is None else tuple(secret)
        self.rule: Rule = rule
        self.network = network
        self.rows = rows
        self.limit = limit
        self.labels = {"kind": KINDS, "construction": CONSTRUCTIONS}
        self._rows = TrainingRows(rows, limit)
        self._warned = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._neurons(pl_module)
        self._secrets(trainer, pl_module)
        self._rows.forget()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._rows.forget()

    @override
    def forget(self) -> None:
        super().forget()
        self._rows.forget()
        self._warned = False

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        pl_module.eval()
        neurons = self._neurons(pl_module)
        weight, bias, secrets = self._weight(pl_module), self._bias(pl_module), self._secrets(trainer, pl_module)
        output = self._output(neurons, weight, bias)
        inputs, targets, _ = self._rows.read(trainer, pl_module)
        sizes, order = neurons.sizes(inputs, targets)
        if not neurons.linear:
            raise ValueError(f"next_layer: {_NO_SUM}")
        size = sizes[RULES.index(self.rule)]
        # One member after another: each has as many neurons as survive.
        known = constructions(secrets.shape[-1])
        parts = zip(weight, bias, output, secrets, in_top(order, size), strict=True)
        members = [_compare(w[kept], b[kept], u[kept], secret, known) for w, b, u, secret, kept in parts]
        values = {name: torch.stack([member[name] for member in members]) for name in members[0]}
        defined = size.isfinite().to(weight.device)
        return {
            name: torch.where(defined.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan)
            for name, value in ({"size": size.to(weight.device)} | values).items()
        }

    @override
    def _take(self, trainer: Trainer, pl_module: LightningModule, step: int) -> dict[str, Tensor]:
        values = super()._take(trainer, pl_module, step)  # of all members, wherever they are
        if not self._warned and _all_deaf(values, n=self._weight(pl_module).shape[-1]):
            self._warned = True
            secret = "of the data module" if self.secret is None else list(self.secret)
            rank_zero_warn(
                f"{type(self).__name__}: no surviving neuron of any member responds to the secret bits {secret}: are "
                "they those of this network? give them as secret=[...]"
            )
        return values

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        patterns = (values["neurons"].sum(dim=1) > 0).sum(dim=1).double()
        means = {
            "patterns": torch.where(values["size"].isnan(), torch.nan, patterns).mean(),
            "off_support": values["off_support"].mean(),
        }
        k = values["neurons"].shape[-1].bit_length() - 1
        known = constructions(k)
        if k <= MOST_PROVED:
            means["efficiency"] = values["efficiency"].mean()
        means |= {name: values["likeness"][:, CONSTRUCTIONS.index(name)].mean() for name in known}
        return {name: float(value) for name, value in means.items()}

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {
            "layer": self.layer,
            "next_layer": self.next_layer,
            "secret": "" if self.secret is None else ", ".join(map(str, self.secret)),
            "rule": self.rule,
            "network": self.network or "",
            "rows": self.rows or "",
            "limit": self.limit or 0,
        }

    def _neurons(self, pl_module: LightningModule) -> Neurons:
        return Neurons(pl_module, self.layer, self.next_layer, self.network)

    def _weight(self, pl_module: LightningModule) -> Tensor:
        """Return the incoming weights, ``(E, neuron, n)``."""
        return find_weight(pl_module, self.layer).detach()

    def _bias(self, pl_module: LightningModule) -> Tensor:
        """Return the bias, ``(E, neuron)``; 0 where the layer has none."""
        weight, bias = self._weight(pl_module), getattr(find_submodule(pl_module, self.layer), "bias", None)
        return bias.detach().reshape(weight.shape[:2]) if isinstance(bias, Tensor) else torch.zeros_like(weight[..., 0])

    def _secrets(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Return the positions of the secret bits of this process's members, ``(E, k)``, int64.

        Raises:
            ValueError: If nobody knows them, or they are not positions of a row.

        """
        weight = self._weight(pl_module)
        members = n_members_in_all(pl_module)
        if self.secret is not None:
            secrets = [list(self.secret)] * members
        else:
            data = getattr(trainer, "datamodule", None)
            tasks = [data.task_of(e) for e in range(members)] if isinstance(data, HasTasks) else [None]
            secrets = [task.secret.tolist() for task in tasks if isinstance(task, HasSecret)]
            if len(secrets) < members:
                raise ValueError(
                    "secret: the data module does not know which bits are secret; give their positions, as in "
                    "secret=[0, 1, 2]"
                )
        lengths = {len(secret) for secret in secrets}
        if len(lengths) > 1:
            raise ValueError(f"secret: expected as many secret bits for all members, got {sorted(lengths)}")
        for secret in secrets:
            _check_secret(secret)
            if max(secret) >= weight.shape[-1]:
                raise ValueError(f"secret: expected positions below {weight.shape[-1]}, got {secret}: {self.layer}")
        patterns = sign_patterns(len(secrets[0])).tolist()
        labels = tuple("".join("+" if sign > 0 else "-" for sign in pattern) for pattern in patterns)
        self.labels = {"kind": KINDS, "construction": CONSTRUCTIONS, "pattern": labels}
        return own_members(pl_module, torch.tensor(secrets)).to(weight.device)

    def _output(self, neurons: Neurons, weight: Tensor, bias: Tensor) -> Tensor:
        """Return what one unit of each neuron's activation adds to the logit, ``(E, neuron)``.

        Raises:
            ValueError: If neurons are not ``relu(w · x + b)`` of the row x, or the network is no sum over them, or has
                several logits.

        """
        n = weight.shape[-1]
        rows = (2 * torch.eye(n, dtype=weight.dtype, device=weight.device) - 1)[:PROBES]
        active, logits = neurons.look(rows)
        expected = torch.relu(rows.double() @ weight.double().mT + bias.double().unsqueeze(1))
        scale = weight.double().abs().sum(dim=-1) + bias.double().abs()
        # Of numbers: a network that has diverged has no neurons that could be another form.
        off = (active.double() - expected).abs() > torch.finfo(weight.dtype).eps ** 0.5 * scale.unsqueeze(1)
        if active.shape != expected.shape or bool(off[expected.isfinite() & active.isfinite()].any()):
            raise ValueError(
                f"layer: expected neurons relu(w · x + b) of the row x, {tuple(expected.shape)}, and they are not: "
                f"{neurons.names}"
            )
        if logits.shape[-1] != 1:
            raise ValueError(f"network: expected one logit, got {logits.shape[-1]}")
        readout = neurons.readout(rows, rows[:, 0])
        if readout is None:
            raise ValueError(f"next_layer: {_NO_SUM}: {neurons.names}")
        return readout.squeeze(-2).detach()


_NO_SUM = "expected a logit that is a weighted sum over the neurons"


def _compare(
    weight: Tensor, bias: Tensor, output: Tensor, secret: Tensor, known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what is measured of the surviving neurons of one member; see :class:`ParityCircuits`."""
    circuit = circuit_of(weight, bias, output, secret)
    everyone = torch.ones_like(bias, dtype=torch.bool)
    kinds = neuron_kinds(circuit)
    by_kind = torch.stack([kinds == kind for kind in range(len(KINDS))])
    nothing = Likeness(*circuit.bias.new_full((3,), torch.nan))
    likenesses = [likeness(circuit, everyone, known[name]) if name in known else nothing for name in CONSTRUCTIONS]
    return {
        "neurons": count_neurons(circuit, everyone),
        "fires": _mean_over(by_kind, patterns_fired_on(circuit).double()),
        "bias": _mean_over(by_kind, bias_ratios(circuit)),
        "off_support": off_support(weight, secret, everyone),
        "efficiency": efficiency(weight, bias, output, secret, everyone),
        "found": torch.stack([each.found for each in likenesses]),
        "covered": torch.stack([each.covered for each in likenesses]),
        "likeness": torch.stack([each.both for each in likenesses]),
    }


def _all_deaf(values: Mapping[str, Tensor], n: int) -> bool:
    """Return whether members have neurons, and none of them responds to the secret bits among n.

    Neurons do not if the weights on these are far below the others, or if they fire on none of their patterns: there is
    no likeness then. Members without neurons, or diverged ones, do not count.
    """
    k = values["neurons"].shape[-1].bit_length() - 1
    there = values["size"] > 0
    unread = values["off_support"] > DEAF * math.sqrt((n - k) / k)
    silent = values["likeness"][:, CONSTRUCTIONS.index("proposition_1")].isnan()
    return bool(there.any()) and bool((unread | silent)[there].all())


def _mean_over(sets: Tensor, values: Tensor) -> Tensor:
    """Return the mean of values ``(neuron,)`` over each of sets ``(set, neuron)``; NaN over none."""
    return torch.where(sets, values, 0).sum(dim=-1) / sets.sum(dim=-1)


def _check_secret(secret: Sequence[int]) -> None:
    if not 1 <= len(secret) <= MOST_BITS:
        raise ValueError(f"secret: expected 1 to {MOST_BITS} positions, as there are 2^k patterns, got {len(secret)}")
    if len(set(secret)) < len(secret) or min(secret) < 0:
        raise ValueError(f"secret: expected different positions from 0 on, got {list(secret)}")
