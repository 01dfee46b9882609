"""The logits of a network that learns a group operation, split into a generalising and a memorising part, over time."""

import difflib
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, final, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as nnf
from typing_extensions import override

from .functional.fourier_logits import (
    GridSums,
    Totals,
    centre,
    coset_means,
    excluded_loss,
    frequencies_of,
    frequency_power,
    gini,
    grid_sums,
    group_of,
    kept_logits,
    key_frequencies,
    lookup_table,
    mean_over,
    neuron_frequencies,
    residual,
    restricted_loss,
    spectrum,
    totals,
    trigonometric_logits,
    trigonometric_share,
)
from .members import n_members_here
from .monitor import Monitor, find_submodule
from .neurons import Neurons, uncompiled
from .protocols import HasRows
from .rows import rows_of, rows_version
from .schedule import LogSpaced, Schedule
from .snapshots import plain_name

__all__ = ["FourierLogitSplitter", "Layout"]

Layout = Literal["a b", "a b =", "a op b =", "one-hot"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

ROWS = ("all", "train", "held_out")
OVER = ("all", "held_out")

ROWS_AT_ONCE = 2048
"""Rows of all members together in a forward pass: about what stays in a processor's cache."""


class _TrainingRows(NamedTuple):
    """Of every pair, in group coordinates, whether it is trained on, and its label; ``(E, n, n)`` each.

    A label that has no place in the group is −1. Rows that are not trained on have the label of the operation.
    """

    trained: Tensor
    labels: Tensor


@final
class FourierLogitSplitter(Monitor):
    """Splits logits over all pairs (a, b) into the trigonometric part and the rest: Varma et al. 2023, appendix B.

    (arXiv 2309.02390.) The network is run on all pairs of residues; for ``multiply`` and ``divide`` on all pairs of
    non-zero ones. Those that are not training rows are the held-out ones, wherever else they are used. Subtraction,
    multiplication and division are brought to the form c = a + b mod n by their own characters (:func:`group_of`); n is
    the modulus, or, without 0 as an operand and as a label, the modulus less one. Logits are centred over labels, which
    the paper does not do and softmax does not see. The *trigonometric* part (the generalising circuit) is the
    projection on cos(ω_k(a + b − c)) for all k; what is left is the *memorising* part. The trigonometric logit of the
    right label is one number for all pairs.

    The paper's measures are partly arithmetic: a lookup table of the training rows, which knows no trigonometry, has a
    trigonometric share of √α, where α is the share of the pairs that it covers, a trigonometric logit αL and a
    memorising logit (1 − α)L, where L is its logit. What it has (:func:`grok_callbacks.functional.lookup_table`, with
    the network's own L and the labels of its rows) is recorded beside what the network has, so that every curve can
    stand beside its null model. Measures over held-out rows alone are free of it; without key frequencies, of which it
    has none, the restricted loss is about log n and the excluded loss is the loss.

    Leaves, with dimensions ``(step, member, ...)``, NaN wherever something is not determined (no held-out rows, a
    network that has diverged):

    - ``train_share``: share α of the pairs that are trained on.
    - ``correct`` (rows: all, train, held_out): mean logit of the right label. Right on training rows is the label that
      the data give, without noise where they know it, random where all are; elsewhere what the operation says; so in
      everything below.
    - ``trigonometric`` (over: all, held_out): trigonometric logit of what the operation says, from coset means over all
      rows (the paper's), or over held-out rows only.
    - ``memorising`` (rows): mean memorising logit of the right label.
    - ``memorising_wrong`` (rows): mean over rows of the largest memorising logit of a wrong label.
    - ``share``, ``share_squared`` (over): share of the norm, and of the squared norm, that is trigonometric.
    - ``power`` (frequency): each frequency's share of the squared norm; frequencies are 1 ... n//2.
    - ``table_share``, ``table_trigonometric``, ``table_memorising`` (on training rows), ``table_power`` (frequency):
      what a lookup table of the training rows has instead of ``share``, ``trigonometric``, ``memorising`` and
      ``power``.
    - ``key`` (frequency): whether it stands out (:func:`key_frequencies`).
    - ``restricted_loss``: cross-entropy, in nats, over all pairs, of the logits with the key frequencies alone; labels
      are those of the operation. ``excluded_loss``: over the training rows, of the logits without them. Nanda et al.
      2023 (arXiv 2301.05217).
    - with ``embedding``: ``embedding_power`` (frequency), its spectrum over residues (those of the left operand), and
      ``embedding_gini``, the Gini coefficient of its components' norms, without the constant.
    - with ``layer`` and ``next_layer``: ``neuron_frequency`` (neuron), the frequency that explains most of a neuron's
      variance over all pairs, and ``neuron_explained`` (neuron), how much; NaN for a dead neuron.
      ``neuron_logit_power`` (frequency) and ``neuron_logit_gini``: of the map from neurons to logits, where logits are
      linear in the neurons; NaN where they are not.

    Loggers get, as means over members: ``share`` and ``trigonometric`` over all rows, ``memorising`` on training rows,
    the number of ``key_frequencies``, ``restricted_loss`` and ``excluded_loss``.

    The network takes rows that all members share, ``(B, ...)``. Where it puts out logits of every position, the last
    one's count; so with neurons. Where it has more outputs than residues, the first ones count.

    Args:
        modulus: Number of residues p.
        operation: ``add``, ``subtract``, ``multiply`` or ``divide``; the modulus has to be prime for the last two.
        layout: What a row is. ``a b``, ``a b =``, ``a op b =``: whole numbers, tokens 0 ... p − 1 standing for
            residues. ``one-hot``: 2p numbers, a one-hot and then b one-hot.
        operator_token: Token of the operator; p if ``None``.
        equals_token: Token of the equals sign; if ``None``, p where there is no operator, and p + 1 where there is.
        network: Dotted name of the module that maps rows to logits; the LightningModule itself if ``None``.
        embedding: Dotted name of a parameter, or of a module with a ``weight``, that has a row for every token:
            ``(V, d)``, or ``(E, V, d)`` in a module with members. For ``one-hot``: the first linear layer, ``(d, 2p)``.
        layer: Dotted name of the layer of neurons; it has a ``weight`` of ``(out, in)``, or ``(E, out, in)``.
        next_layer: Dotted name of the module that reads the neurons' activations, along the last axis of its input.
        rows: Import path of a function ``(trainer, pl_module, split) -> (inputs, targets)``; by default training rows
            come from the data module, or from the dataset of the training loader. They are read once.
        schedule: When to measure.
        name: Name of the record's group and prefix of logged scalars.

    Raises:
        ValueError: If the operation or the layout is unknown, the modulus does not do for the operation or leaves a
            single pair, a token is given that the layout has not, or one of ``layer`` and ``next_layer`` alone. When
            fitting starts, if the model does not take such rows or puts out fewer logits than there are residues; then
            or at the first measurement, if the training rows are of another layout.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train_share": (),
        "correct": ("rows",),
        "trigonometric": ("over",),
        "memorising": ("rows",),
        "memorising_wrong": ("rows",),
        "share": ("over",),
        "share_squared": ("over",),
        "power": ("frequency",),
        "table_share": (),
        "table_trigonometric": (),
        "table_memorising": (),
        "table_power": ("frequency",),
        "key": ("frequency",),
        "restricted_loss": (),
        "excluded_loss": (),
        "embedding_power": ("frequency",),
        "embedding_gini": (),
        "neuron_frequency": ("neuron",),
        "neuron_explained": ("neuron",),
        "neuron_logit_power": ("frequency",),
        "neuron_logit_gini": (),
    }

    def __init__(
        self,
        modulus: int,
        operation: str = "add",
        layout: Layout = "a op b =",
        operator_token: int | None = None,
        equals_token: int | None = None,
        network: str | None = None,
        embedding: str | None = None,
        layer: str | None = None,
        next_layer: str | None = None,
        rows: str | None = None,
        schedule: Schedule = LogSpaced(20),  # noqa: B008 - a frozen value
        name: str = "fourier",
    ) -> None:
        super().__init__(schedule, name)
        self.group = group_of(operation, modulus)
        self.n = len(self.group.left)
        if self.n < 2:
            raise ValueError(f"modulus: {operation} modulo {modulus} has a single pair; there is nothing to split")
        self.modulus = modulus
        self.operation = operation
        self.layout: Layout = _check_layout(layout)
        with_operator, with_equals = "op" in layout, "=" in layout
        self.operator_token = _token("operator_token", operator_token, modulus, with_operator, modulus, layout)
        default = modulus + 1 if with_operator else modulus
        self.equals_token = _token("equals_token", equals_token, default, with_equals, modulus, layout)
        if (layer is None) != (next_layer is None):
            raise ValueError(f"layer, next_layer: give both or neither, got {layer!r} and {next_layer!r}")
        self.network = network
        self.embedding = embedding
        self.layer = layer
        self.next_layer = next_layer
        self.rows = rows
        self.labels = {"rows": ROWS, "over": OVER, "frequency": tuple(frequencies_of(self.n))}
        self._rows: _TrainingRows | None = None
        self._version = 0

    # ---- when ----------------------------------------------------------------------------------------------------

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = None
        with self.undisturbed(pl_module):
            pl_module.eval()
            neurons = self._neurons(pl_module)
            self._embedding(pl_module)
            if self.rows is not None or isinstance(getattr(trainer, "datamodule", None), HasRows):
                self._training_rows(trainer, pl_module)
            self._try(trainer, pl_module, neurons)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._rows = None

    @override
    def forget(self) -> None:
        super().forget()
        self._rows = None

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        pl_module.eval()
        neurons = self._neurons(pl_module)
        rows = self._training_rows(trainer, pl_module)
        cube, sums = self._look(trainer, pl_module, neurons)
        values = _split(cube, rows)
        embedding = self._embedding(pl_module)
        if embedding is not None:
            found = spectrum(embedding[:, self.group.left])
            values |= {"embedding_power": found.power, "embedding_gini": gini(found.norms)}
        if neurons is not None and sums is not None:
            found_of_neurons = neuron_frequencies(GridSums(*(part.double() for part in sums)))
            values |= {
                "neuron_frequency": found_of_neurons.frequency,
                "neuron_explained": found_of_neurons.explained,
            }
            values |= self._readout(trainer, pl_module, neurons)
        return values

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        means = {
            "share": values["share"][:, 0],
            "trigonometric": values["trigonometric"][:, 0],
            "memorising": values["memorising"][:, 1],
            "key_frequencies": values["key"].sum(dim=1).double(),
            "restricted_loss": values["restricted_loss"],
            "excluded_loss": values["excluded_loss"],
        }
        return {name: float(value.mean()) for name, value in means.items()}

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {
            "modulus": self.modulus,
            "operation": self.operation,
            "layout": self.layout,
            "operator_token": "" if self.operator_token is None else self.operator_token,
            "equals_token": "" if self.equals_token is None else self.equals_token,
            "network": self.network or "",
            "embedding": self.embedding or "",
            "layer": self.layer or "",
            "next_layer": self.next_layer or "",
            "rows": self.rows or "",
        }

    # ---- rows ----------------------------------------------------------------------------------------------------

    def _encode(self, a: Tensor, b: Tensor) -> Tensor:
        """Return rows ``(..., width)`` of residues ``(...)``."""
        if self.layout == "one-hot":
            pair = [nnf.one_hot(x, self.modulus) for x in (a, b)]
            return torch.cat(pair, dim=-1).to(torch.get_default_dtype())
        columns = [a, self.operator_token, b, self.equals_token]
        return torch.stack([_column(x, a) for x in columns if x is not None], dim=-1)

    def _decode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residues of training rows, each ``(...)``.

        Raises:
            ValueError: If the rows are of another layout.

        """
        width = self._encode(*inputs.new_zeros(2, 1, dtype=torch.int64)).shape[-1]
        if inputs.shape[-1] != width:
            raise ValueError(f"layout: expected training rows {self._form()}, got {tuple(inputs.shape)}")
        if self.layout == "one-hot":
            a, b = (half.argmax(dim=-1) for half in (inputs[..., : self.modulus], inputs[..., self.modulus :]))
        else:
            a, b = (inputs[..., i].long().clamp(0, self.modulus - 1) for i in (0, 1 + ("op" in self.layout)))
        wrong = (self._encode(a, b) != inputs).any(dim=-1)
        if bool(wrong.any()):
            row = inputs[wrong][0].tolist()
            shown = f"{row[:8]} and so on" if len(row) > 8 else str(row)
            raise ValueError(f"layout, modulus: expected training rows {self._form()}, got {shown}")
        return a, b

    def _form(self) -> str:
        """Return what a row should be, for messages."""
        if self.layout == "one-hot":
            return f"'one-hot', a and then b as {self.modulus} numbers each"
        tokens = {"a": "a", "b": "b", "op": str(self.operator_token), "=": str(self.equals_token)}
        row = ", ".join(tokens[part] for part in self.layout.split())
        return f"'{self.layout}': [{row}] with a and b from 0 to {self.modulus - 1}"

    def _training_rows(self, trainer: Trainer, pl_module: LightningModule) -> _TrainingRows:
        """Return the training rows, read once: a dataset may be slow; anew when training goes on with others.

        Raises:
            ValueError: If they are not of the layout, or their labels are no residues.

        """
        version = rows_version(trainer)
        if self._rows is None or version != self._version:
            self._version = version
            inputs, targets = rows_of(trainer, pl_module, "train", self.rows)
            self._rows = self._place(inputs, targets, n_members_here(pl_module))
        return self._rows

    def _place(self, inputs: Tensor, targets: Tensor, members: int) -> _TrainingRows:
        if inputs.ndim != targets.ndim + 1 or (targets.ndim != 1 and (targets.ndim != 2 or len(targets) != members)):
            raise ValueError(
                f"rows: expected training rows (N, width) and labels (N,), or (E, N, width) and (E, N) for {members} "
                f"members, got {tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        a, b = (x.expand(members, -1) for x in self._decode(inputs))
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(f"labels: expected residues from 0 to {self.modulus - 1}, got {targets.dtype}")
        outside = (targets < 0) | (targets >= self.modulus)
        if bool(outside.any()):
            raise ValueError(
                f"modulus: expected labels from 0 to {self.modulus - 1}, got {int(targets[outside].flatten()[0])}"
            )
        left, right, result = (_positions_of(x, self.modulus).to(targets.device) for x in self.group)
        i, j, label = left[a], right[b], result[targets.long()].expand(members, -1)
        positions = torch.arange(self.n, device=targets.device)
        labels = ((positions.unsqueeze(1) + positions) % self.n).repeat(members, 1, 1)
        trained = torch.zeros_like(labels, dtype=torch.bool)
        inside = (i >= 0) & (j >= 0)
        where = (inside.nonzero()[:, 0], i[inside], j[inside])
        agreeing = (labels[where] == label[inside]).double().mean()
        if agreeing < 0.5:
            rank_zero_info(
                f"{self.name}: {float(agreeing):.0%} of the labels of training rows are those of {self.operation} "
                f"modulo {self.modulus}; right there is what the data say, elsewhere what the operation says"
            )
        trained[where] = True
        labels[where] = label[inside]
        return _TrainingRows(trained, labels)

    # ---- the network ---------------------------------------------------------------------------------------------

    def _neurons(self, pl_module: LightningModule) -> Neurons | None:
        if self.layer is None or self.next_layer is None:
            return None
        return Neurons(pl_module, self.layer, self.next_layer, self.network, at_last_position=True)

    def _inputs(self, trainer: Trainer, pl_module: LightningModule, a: Tensor, b: Tensor) -> Tensor:
        # In the precision that the loops hand batches over in.
        inputs: Tensor = trainer.precision_plugin.convert_input(self._encode(a, b))
        return inputs.to(pl_module.device)

    def _run(self, pl_module: LightningModule, neurons: Neurons | None, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits ``(E, B, C)`` and activations ``(E, B, neuron)``."""
        if neurons is not None:
            activations, logits = neurons.look(inputs)
            return logits, activations
        network: nn.Module = pl_module if self.network is None else find_submodule(pl_module, self.network, "network")
        with uncompiled():
            output = network(inputs)
        return _at_last_position(output, len(inputs), n_members_here(pl_module)), None

    def _try(self, trainer: Trainer, pl_module: LightningModule, neurons: Neurons | None) -> None:
        """Run the network on a few rows in which every token occurs.

        Raises:
            ValueError: If it does not take them, or what it puts out cannot be read.

        """
        inputs = self._inputs(trainer, pl_module, self.group.left, self.group.right)
        try:
            logits, activations = self._run(pl_module, neurons, inputs)
        except Exception as error:
            raise ValueError(
                f"layout, modulus: the model fails on rows {self._form()}, {inputs.dtype} {tuple(inputs.shape)}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        self._check_outputs(logits, activations, len(inputs), n_members_here(pl_module))

    def _check_outputs(self, logits: Tensor, activations: Tensor | None, n_rows: int, members: int) -> None:
        if logits.shape[:2] != (members, n_rows) or logits.shape[2] < self.modulus:
            raise ValueError(
                f"modulus: expected logits {(members, n_rows, self.modulus)} or wider, one for each residue, got "
                f"{tuple(logits.shape)}"
            )
        if activations is not None and activations.shape[:-1] != (members, n_rows):
            raise ValueError(
                f"next_layer: expected it to read {(members, n_rows)} rows of neurons, at one position or at all, got "
                f"{tuple(activations.shape)}"
            )

    def _look(
        self, trainer: Trainer, pl_module: LightningModule, neurons: Neurons | None
    ) -> tuple[Tensor, GridSums | None]:
        """Return the cube of centred logits ``(E, n, n, n)``, and sums over the neurons' activations.

        Raises:
            ValueError: If the network puts out something else than logits of every residue.

        """
        members, n = n_members_here(pl_module), self.n
        at_once = max(1, ROWS_AT_ONCE // (members * n))
        cube: Tensor | None = None
        origin: Tensor | None = None
        sums: GridSums | None = None
        for first in range(0, n, at_once):
            left = self.group.left[first : first + at_once]
            inputs = self._inputs(trainer, pl_module, left.repeat_interleave(n), self.group.right.repeat(len(left)))
            logits, activations = self._run(pl_module, neurons, inputs)
            self._check_outputs(logits, activations, len(inputs), members)
            piece = centre(_at_least_float32(self._of_group(logits))).reshape(members, len(left), n, n)
            if cube is None:
                cube = piece.new_empty(members, n, n, n)
            cube[:, first : first + at_once] = piece
            if activations is not None:
                grid = _at_least_float32(activations).reshape(members, len(left), n, -1)
                origin = grid[:, 0, 0].clone() if origin is None else origin
                more = grid_sums(grid, first, origin)
                sums = more if sums is None else GridSums(*map(torch.add, sums, more))
        assert cube is not None
        return cube, sums

    def _of_group(self, values: Tensor) -> Tensor:
        """Return values of outputs, ``(..., C)``, as those of the group's elements, ``(..., n)``."""
        if self.operation in ("add", "subtract"):
            return values[..., : self.n]
        return values.index_select(-1, self.group.result.to(values.device))

    def _readout(self, trainer: Trainer, pl_module: LightningModule, neurons: Neurons) -> dict[str, Tensor]:
        """Return the spectrum over residues of what neurons add to the logits; NaN where that is not one matrix."""
        inputs = self._inputs(trainer, pl_module, self.group.left, self.group.right)
        readout = neurons.readout(inputs, self.group.left)
        if readout is None:
            members = n_members_here(pl_module)
            return {
                "neuron_logit_power": torch.full((members, self.n // 2), torch.nan, dtype=torch.float64),
                "neuron_logit_gini": torch.full((members,), torch.nan, dtype=torch.float64),
            }
        found = spectrum(self._of_group(readout.double().mT).mT)
        return {"neuron_logit_power": found.power, "neuron_logit_gini": gini(found.norms)}

    def _embedding(self, pl_module: LightningModule) -> Tensor | None:
        """Return what stands for each residue, ``(E, p, d)``, float64; ``None`` if no name was given.

        Raises:
            ValueError: If there is no such parameter, or it is of another shape.

        """
        if self.embedding is None:
            return None
        parameters = {plain_name(n): p.detach() for n, p in pl_module.named_parameters(remove_duplicate=False)}
        weight = parameters.get(self.embedding, parameters.get(f"{self.embedding}.weight"))
        if weight is None:
            raise ValueError(
                f"embedding: the model has no '{self.embedding}'; it has {', '.join(parameters) or 'no parameters'}"
            )
        members = n_members_here(pl_module)
        table = weight.unsqueeze(0) if members == 1 and weight.ndim == 2 else weight
        one_hot = self.layout == "one-hot"
        if table.ndim == 3 and one_hot:
            table = table.mT
        n_tokens = 2 * self.modulus if one_hot else self.modulus
        fits = table.ndim == 3 and len(table) == members
        if not fits or table.shape[1] < n_tokens or (one_hot and table.shape[1] != n_tokens):
            form = f"(d, {n_tokens})" if one_hot else f"(V, d) with V at least {n_tokens}"
            raise ValueError(
                f"embedding: expected '{self.embedding}' to be {form} for each of {members} members, got "
                f"{tuple(weight.shape)}"
            )
        return table[:, : self.modulus].double()


def _check_layout(layout: str) -> Layout:
    for known in LAYOUTS:
        if layout == known:
            return known
    near = difflib.get_close_matches(layout, LAYOUTS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got '{layout}'{hint}")


def _token(argument: str, given: int | None, default: int, used: bool, modulus: int, layout: str) -> int | None:
    if not used:
        if given is not None:
            raise ValueError(f"{argument}: rows of layout '{layout}' have none, got {given}")
        return None
    if given is not None and 0 <= given < modulus:
        raise ValueError(f"{argument}: tokens 0 to {modulus - 1} are the residues, got {given}")
    return default if given is None else given


def _column(token: Tensor | int, like: Tensor) -> Tensor:
    return token if isinstance(token, Tensor) else torch.full_like(like, token)


def _positions_of(elements: Tensor, modulus: int) -> Tensor:
    """Return at which position each residue stands, ``(p,)``; −1 for one that has no place."""
    positions = torch.full((modulus,), -1)
    positions[elements] = torch.arange(len(elements))
    return positions


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _at_last_position(output: object, n_rows: int, members: int) -> Tensor:
    """Return logits ``(E, B, C)`` of what a network puts out, with or without a member axis and a position axis.

    Raises:
        ValueError: If it is neither.

    """
    if not isinstance(output, Tensor):
        raise ValueError(f"network: expected its output to be logits, got {type(output).__name__}")
    logits = output.unsqueeze(0) if members == 1 and output.shape[:1] == (n_rows,) else output
    if logits.ndim == 4:
        logits = logits[..., -1, :]
    if logits.ndim != 3:
        axes = "(B, C) or (B, T, C)" if members == 1 else "(E, B, C) or (E, B, T, C)"
        raise ValueError(f"network: expected logits {axes} of B = {n_rows} rows, got {tuple(output.shape)}")
    return logits


def _split(cube: Tensor, rows: _TrainingRows) -> dict[str, Tensor]:
    """Return what is measured of the centred logits ``(E, n, n, n)`` alone."""
    has_place = rows.labels >= 0
    held_out = ~rows.trained
    parts = (has_place, rows.trained & has_place, held_out)
    everywhere, unseen = (Totals(*(part.double() for part in totals(cube, over))) for over in (None, held_out))
    trigonometric = [trigonometric_logits(coset_means(sums)) for sums in (everywhere, unseen)]
    correct = cube.gather(-1, rows.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    rest = residual(cube, trigonometric[0], rows.labels)
    power = frequency_power(everywhere)
    key = key_frequencies(power)
    shares = [trigonometric_share(sums, squared=True) for sums in (everywhere, unseen)]
    squared = torch.stack(shares, dim=-1)

    def means(values: Tensor) -> Tensor:
        return torch.stack([mean_over(values.double(), part) for part in parts], dim=-1)

    right = means(correct)
    table = lookup_table(rows.trained, rows.labels, right[..., ROWS.index("train")])
    return {
        "train_share": rows.trained.double().mean(dim=(-2, -1)),
        "correct": right,
        "trigonometric": torch.stack([logits[..., 0] for logits in trigonometric], dim=-1),
        "memorising": means(rest.right),
        "memorising_wrong": means(rest.wrong),
        "share": squared.sqrt(),
        "share_squared": squared,
        "power": power,
        "table_share": table.share,
        "table_trigonometric": table.trigonometric,
        "table_memorising": table.memorising_train,
        "table_power": table.power,
        "key": key,
        "restricted_loss": restricted_loss(everywhere, key),
        "excluded_loss": excluded_loss(cube, rows.labels, parts[1], kept_logits(everywhere, key)),
    }
