import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grok_lightning.data import TableData
from grok_lightning.modules import Transformer
from grok_lightning.optim import LinearWarmup, override_optimizer, override_scheduler
from grok_lightning.tasks import ModularArithmetic


def warmed(steps=10, lr=0.5, taken=0, kind=SGD):
    """A weight, its optimizer and its warm-up, after some steps."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = kind([weight], lr=lr)
    scheduler = LinearWarmup(optimizer, steps)
    advance(weight, optimizer, scheduler, taken)
    return weight, optimizer, scheduler


def advance(weight, optimizer, scheduler, n):
    """Return the learning rates of the next steps."""
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = weight.detach().clone()
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_the_rate_grows_from_nothing_and_then_stays(steps):
    rates = advance(*warmed(steps), n=steps + 5)
    assert rates == [0.5 * min(s / steps, 1) for s in range(steps + 5)]
    assert rates[0] == 0
    assert rates[steps:] == [0.5] * 5


def test_by_default_there_are_ten_steps():
    scheduler = LinearWarmup(SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    assert scheduler.steps == 10


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.5, 2.0)]
    optimizer = SGD(groups, lr=1.0)
    scheduler = LinearWarmup(optimizer, 4)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.5]
    assert scheduler.get_last_lr() == [0.125, 0.5]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_the_first_step_moves_nothing(kind):
    weight, optimizer, scheduler = warmed(kind=kind)
    advance(weight, optimizer, scheduler, 1)
    assert bool((weight == 1).all())
    advance(weight, optimizer, scheduler, 1)
    assert bool((weight < 1).all())


def test_it_is_torchs_own_schedule_of_that_function():
    weight, optimizer, scheduler = warmed(7, kind=AdamW)
    other = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    theirs = AdamW([other], lr=0.5)
    expected = LambdaLR(theirs, lambda step: min(step / 7, 1))
    assert advance(weight, optimizer, scheduler, 12) == advance(other, theirs, expected, 12)
    assert torch.equal(weight, other)


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 9])
def test_it_goes_on_from_where_it_was(taken):
    whole = advance(*warmed(4), n=taken + 6)
    _, optimizer, scheduler = warmed(4, taken=taken)
    weight, again, continued = warmed(4)
    again.load_state_dict(optimizer.state_dict())
    continued.load_state_dict(scheduler.state_dict())
    assert advance(weight, again, continued, 6) == whole[taken:]


def test_a_last_step_may_be_given_as_to_any_scheduler_of_torch():
    weight, optimizer, _ = warmed(4, taken=2)
    assert advance(weight, optimizer, LinearWarmup(optimizer, 4, last_epoch=1), 3) == [0.25, 0.375, 0.5]


@pytest.mark.parametrize("taken", [0, 1, 3, 9])
def test_another_learning_rate_is_taken_on_resuming(taken):
    _, optimizer, scheduler = warmed(4, lr=0.5, taken=taken)
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    override_optimizer(checkpoint, "lr", 0.5, 2.0)
    weight, again, continued = warmed(4, lr=2.0)
    again.load_state_dict(checkpoint["optimizer_states"][0])
    continued.load_state_dict(checkpoint["lr_schedulers"][0])
    assert continued.get_last_lr() == [2.0 * min(taken / 4, 1)]
    assert advance(weight, again, continued, 6) == [2.0 * min(s / 4, 1) for s in range(taken, taken + 6)]


def test_another_number_of_steps_is_taken_on_resuming():
    _, optimizer, scheduler = warmed(4, taken=2)
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    override_scheduler(checkpoint, {"steps": 10})
    weight, again, continued = warmed(10)
    again.load_state_dict(checkpoint["optimizer_states"][0])
    continued.load_state_dict(checkpoint["lr_schedulers"][0])
    # The step that the checkpoint was about to take has its rate already.
    assert advance(weight, again, continued, 3) == [0.25, 0.5 * 3 / 10, 0.5 * 4 / 10]


@pytest.mark.parametrize("steps", [0, -3])
def test_less_than_a_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"LinearWarmup: steps must be at least 1, got {steps}"):
        LinearWarmup(SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), steps)


def test_a_trainer_steps_it_every_step(make_trainer):
    rates = []

    class Notes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = Transformer(n_tokens=7, n_outputs=5, d_model=4, n_heads=1)
    make_trainer(max_steps=13, callbacks=[Notes()]).fit(
        module, TableData(ModularArithmetic("add", 5), train_size=16, batch_size=8)
    )
    assert rates == [1e-3 * min(s / 10, 1) for s in range(13)]
