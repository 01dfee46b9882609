"""What a module may offer beyond plain Lightning. Nothing here is required."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "CanShrink",
    "HasCoordinates",
    "HasMemberDecay",
    "HasMemberMetrics",
    "HasMembers",
    "HasParts",
    "HasRows",
    "HasRowsVersion",
    "HasSecret",
    "HasTasks",
    "SpreadsMembers",
]


@runtime_checkable
class HasMembers(Protocol):
    """A module whose parameters and logits lead with a member axis; any other module is one member without it."""

    @property
    def n_members(self) -> int:
        """E, the number of members; of those whose parameters this process has, where they are spread over several."""


@runtime_checkable
class SpreadsMembers(Protocol):
    """A module whose members may be spread over processes, each of which then has the parameters of its own alone."""

    @property
    def n_members_in_all(self) -> int:
        """E, the number of members in all processes."""

    @property
    def own_members(self) -> slice:
        """Which of the E members this process has."""

    def gather_members(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values of this process's members, ``(e, ...)``, as those of all, ``(E, ...)``; in every process."""


@runtime_checkable
class HasMemberMetrics(Protocol):
    """A module that knows its validation metrics for every member."""

    def member_metrics(self) -> dict[str, Tensor]:
        """Return ``{name: (E,)}`` of the weights as they are now; ``{}`` if they cannot be had without a validation."""


@runtime_checkable
class HasRows(Protocol):
    """A data module that hands out rows without disturbing its loaders."""

    def rows(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, N, ...)`` and labels ``(E, N)``."""


@runtime_checkable
class HasMemberDecay(Protocol):
    """A module that decays the weights of its members itself, by numbers of their own."""

    @property
    def weight_decays(self) -> list[float] | None:
        """λ_e of each member of the whole population, ``None`` if the optimizer's own decay holds for all."""


@runtime_checkable
class HasCoordinates(Protocol):
    """A module whose members are told apart by named numbers.

    Attributes:
        members: One list a coordinate, with a number for each member.

    """

    members: dict[str, list[int | float]]


@runtime_checkable
class HasRowsVersion(Protocol):
    """A data module whose rows may become others as training goes on."""

    @property
    def rows_version(self) -> int:
        """A number that is another when ``rows`` gives others than before."""


@runtime_checkable
class HasTasks(Protocol):
    """A data module that knows what each of its members is to learn."""

    def task_of(self, member: int) -> object:
        """Return the task of a member of the whole population."""


@runtime_checkable
class HasSecret(Protocol):
    """A task that depends on some positions of a row alone.

    Attributes:
        secret: The positions, ``(k,)``, int64.

    """

    secret: Tensor


@runtime_checkable
class HasParts(Protocol):
    """A data module that knows which rows were removed from those trained on."""

    def parts(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return inputs ``(E, N, ...)``, labels ``(E, N)`` and masks ``(E, N)``, bool, by the name of the part.

        The part ``kept`` is of ``train``, ``removed`` and ``never_seen`` are of ``held_out``. A row of none is padding.
        """


@runtime_checkable
class CanShrink(Protocol):
    """A data module whose members can go on with some of their training rows.

    Attributes:
        sizes: Number of training rows of each member before that.

    """

    sizes: list[int]

    def prepare_to_shrink(self) -> None:
        """Be ready: called before any loader is made. No member has shrunk."""

    def keep_rows(self, kept: Sequence[Tensor | None], since: Sequence[int]) -> None:
        """Train member e on its rows ``kept[e]`` alone, all if ``None``, after ``since[e]`` optimizer steps.

        What is measured at a step are the rows of the training step before it; after -1 steps, at step 0 too.
        """

    def forget_shrink(self) -> None:
        """Be as before :meth:`prepare_to_shrink`."""
