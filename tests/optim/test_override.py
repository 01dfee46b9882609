import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from grok_lightning.optim import override_optimizer, override_scheduler


def trained(lr: float, steps: int, momentum: float = 0.9) -> tuple[torch.nn.Parameter, SGD, StepLR]:
    """Return a weight after some steps with a learning rate that halves every second one."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = SGD([weight], lr=lr, momentum=momentum)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(steps):
        weight.grad = weight.detach().clone()
        optimizer.step()
        scheduler.step()
    return weight, optimizer, scheduler


def checkpoint_of(optimizer: SGD, scheduler: StepLR) -> dict:
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}


def test_a_new_learning_rate_keeps_what_the_scheduler_has_made_of_it() -> None:
    _, optimizer, scheduler = trained(lr=0.1, steps=3)
    checkpoint = checkpoint_of(optimizer, scheduler)
    override_optimizer(checkpoint, "lr", 0.1, 0.4)
    _, other, other_scheduler = trained(lr=0.4, steps=0)
    other.load_state_dict(checkpoint["optimizer_states"][0])
    other_scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
    # The third step halved it once; the fourth will halve it again.
    assert other.param_groups[0]["lr"] == 0.2
    other.step()
    other_scheduler.step()
    assert other.param_groups[0]["lr"] == 0.1
    assert other_scheduler.base_lrs == [0.4]


def test_any_other_argument_is_replaced_and_nothing_else_is() -> None:
    _, optimizer, scheduler = trained(lr=0.1, steps=3)
    checkpoint = checkpoint_of(optimizer, scheduler)
    before = {key: value for key, value in optimizer.state_dict()["param_groups"][0].items() if key != "momentum"}
    override_optimizer(checkpoint, "momentum", 0.9, 0.5)
    after = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert after.pop("momentum") == 0.5
    assert after == before


def test_an_argument_that_the_optimizer_does_not_keep_is_passed_over() -> None:
    _, optimizer, scheduler = trained(lr=0.1, steps=1)
    checkpoint = checkpoint_of(optimizer, scheduler)
    override_optimizer(checkpoint, "no_such_argument", 1, 2)
    assert "no_such_argument" not in checkpoint["optimizer_states"][0]["param_groups"][0]


def test_schedulers_within_schedulers_are_rescaled_and_those_without_rates_left_alone() -> None:
    checkpoint = {"lr_schedulers": [{"best": 1.0}, {"_schedulers": [{"base_lrs": [0.25], "_last_lr": [0.125]}]}]}
    override_optimizer(checkpoint, "lr", 0.25, 0.5)
    assert checkpoint["lr_schedulers"] == [{"best": 1.0}, {"_schedulers": [{"base_lrs": [0.5], "_last_lr": [0.25]}]}]


def test_a_schedulers_arguments_are_replaced_where_it_keeps_them() -> None:
    checkpoint = {"lr_schedulers": [{"step_size": 2, "last_epoch": 7}]}
    override_scheduler(checkpoint, {"step_size": 5, "no_such_argument": 1})
    assert checkpoint["lr_schedulers"] == [{"step_size": 5, "last_epoch": 7}]
