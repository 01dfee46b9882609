"""The contract of a network with members."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module, ABC):
    """A network that holds E members: parameters ``(E, ...)``, logits ``(E, B, C)``.

    ``parameter[e]`` is what an ordinary module of member e would hold.

    Attributes:
        n_members: E.

    """

    n_members: int

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(E, B, C)``.

        Args:
            inputs: Rows shared by all members, or rows of every member with a leading E.

        Raises:
            ValueError: If the rank or the shape of ``inputs`` fits neither.

        """

    def check_inputs(self, inputs: Tensor) -> None:
        """Refuse rows that this network was not built for; looks at the values, so call it once, not every step.

        Nothing by default.

        Args:
            inputs: As for :meth:`forward`.

        Raises:
            ValueError: Saying what was expected and what came.

        """
        del inputs

    @property
    def rows_at_once(self) -> int | None:
        """Number of rows of a member to evaluate at once where no gradient is wanted; ``None`` for all that there are.

        A matter of speed alone: activations that leave the processor's cache cost several times their computation.
        """
        return None

    @abstractmethod
    def like(self, n_members: int) -> Self:
        """Return a network of the same shape for ``n_members`` members, with weights of no meaning."""

    def member(self, index: int) -> Self:
        """Return member ``index`` as a network of one member, a copy.

        Raises:
            IndexError: If there is no such member.

        """
        if not -self.n_members <= index < self.n_members:
            raise IndexError(f"member {index} of a population of {self.n_members}")
        index %= self.n_members
        return self.with_state({name: value[index : index + 1] for name, value in self.state_dict().items()})

    def with_state(self, state: Mapping[str, Tensor]) -> Self:
        """Return a network of the same shape for the members that a state is of, a copy.

        Which parameters are trained, train/eval modes and precision are those of this network.

        Args:
            state: What ``state_dict()`` would give, ``(e, ...)`` each, on the device where the network is to be.

        """
        first = next(iter(state.values()))
        other = self.like(len(first)).to(device=first.device, dtype=next(self.parameters()).dtype)
        other.load_state_dict(state)
        trained = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        for name, parameter in other.named_parameters():
            parameter.requires_grad_(trained[name])
        modes = {name: module.training for name, module in self.named_modules()}
        for name, module in other.named_modules():
            module.training = modes[name]
        return other

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of a network of one member, for scripts that know no member axis.

        Raises:
            ValueError: If there is more than one member.

        """
        if self.n_members != 1:
            raise ValueError(f"logits: {self.n_members} members; choose one by member(index).logits(inputs)")
        logits: Tensor = self(inputs)
        return logits.squeeze(0)
