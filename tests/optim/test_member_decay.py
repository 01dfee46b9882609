import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.networks import MLPNetwork
from grok_lightning.optim import ELEMENTWISE, MemberDecay, check_elementwise
from grok_lightning.population import stream
from grok_lightning.tasks import SparseParity

# The ends of the range among them: no decay, and one that shrinks weights tenfold within the 20 steps.
DECAYS = [0.0, 0.01, 1.0, 5.0]

COUPLED = {
    "SGD": partial(optim.SGD, lr=0.03, momentum=0.9),
    "SGD with Nesterov": partial(optim.SGD, lr=0.03, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adam with amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "Adagrad": partial(optim.Adagrad, lr=0.01),
    "Adadelta": partial(optim.Adadelta, lr=0.5),
    "ASGD": partial(optim.ASGD, lr=0.03),
}
DECOUPLED = {
    "AdamW": partial(optim.AdamW, lr=0.03),
    "NAdam, decoupled": partial(optim.NAdam, lr=0.03, decoupled_weight_decay=True),
    "RAdam, decoupled": partial(optim.RAdam, lr=0.03, decoupled_weight_decay=True),
    "Adam, decoupled": partial(optim.Adam, lr=0.03, decoupled_weight_decay=True),
}
OPTIMIZERS = COUPLED | DECOUPLED


def network(n_members=4):
    return MLPNetwork(4, 2, [3], [stream(seed, "initial weights") for seed in range(n_members)]).double()


def alone(population, e):
    """Parameters of member e as tensors of their own."""
    return [nn.Parameter(p[e].detach().clone()) for p in population.parameters()]


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def check_every_step(make_optimizer, decays=DECAYS, make_scheduler=None, n_steps=20):
    population = network(len(decays))
    optimizer = make_optimizer(population.parameters())
    decay = MemberDecay(decays)
    decay.take_over(optimizer)
    members = [alone(population, e) for e in range(len(decays))]
    own = [make_optimizer(p, weight_decay=lam) for p, lam in zip(members, decays, strict=True)]
    schedulers = [make_scheduler(o) for o in [optimizer, *own]] if make_scheduler else []
    parameters = list(population.parameters())
    for step in range(n_steps):
        set_gradients(parameters, step)
        for e, mine in enumerate(members):
            for p, q in zip(mine, parameters, strict=True):
                p.grad = q.grad[e].clone()
        decay.apply(optimizer)
        optimizer.step()
        for o in own:
            o.step()
        for scheduler in schedulers:
            scheduler.step()
        for e, mine in enumerate(members):
            for p, q in zip(mine, parameters, strict=True):
                torch.testing.assert_close(q[e], p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_member_decays_as_torch_decays_it_alone(name):
    check_every_step(OPTIMIZERS[name])


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam, decoupled"])
@pytest.mark.parametrize(
    "make_scheduler", [partial(StepLR, step_size=3, gamma=0.5), partial(CosineAnnealingLR, T_max=20)]
)
def test_decay_follows_the_learning_rate_of_the_moment(name, make_scheduler):
    check_every_step(OPTIMIZERS[name], make_scheduler=make_scheduler)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_population_of_one_may_have_a_decay_of_its_own(name):
    check_every_step(OPTIMIZERS[name], decays=[0.3])


def test_the_reference_notices_the_wrong_kind_of_decay():
    # Adam that couples against Adam that does not: the comparison must be able to fail.
    class Mistaken(optim.Adam):
        def __init__(self, params, weight_decay=0.0):
            super().__init__(params, lr=0.03, weight_decay=weight_decay, decoupled_weight_decay=True)
            for group in self.param_groups:
                group["decoupled_weight_decay"] = not weight_decay

    with pytest.raises(AssertionError, match="not close"):
        check_every_step(Mistaken)


def test_every_optimizer_with_a_decay_is_compared():
    # Rprop has none.
    compared = {make.func for make in OPTIMIZERS.values()}
    assert {kind for kind in ELEMENTWISE if kind is not optim.Rprop} == compared


def test_parameters_of_all_groups_decay_and_those_without_a_gradient_stay():
    population = network(2)
    first, *others = population.parameters()
    optimizer = optim.SGD([{"params": [first], "lr": 0.5}, {"params": others, "lr": 0.25}])
    decay = MemberDecay([0.0, 1.0])
    decay.take_over(optimizer)
    before = [p.detach().clone() for p in population.parameters()]
    for p in population.parameters():
        p.grad = torch.zeros_like(p)
    others[-1].grad = None
    decay.apply(optimizer)
    optimizer.step()
    after = list(population.parameters())
    for p, q, factor in zip(after, before, [0.5, 0.75, 1.0], strict=True):
        assert torch.equal(p[0], q[0])
        torch.testing.assert_close(p[1], q[1] * factor)


@pytest.mark.parametrize(
    "make_optimizer", [partial(optim.SGD, lr=0.1, weight_decay=0.1), partial(optim.AdamW, weight_decay=0.5)]
)
def test_a_decay_typed_beside_the_coordinate_is_refused(make_optimizer):
    with pytest.raises(ValueError, match=r"weight_decay is given twice: 0\.[15] for the optimizer"):
        MemberDecay([0.0, 1.0]).take_over(make_optimizer(network(2).parameters()))


@pytest.mark.parametrize(
    "make_optimizer", [partial(optim.AdamW), partial(optim.AdamW, weight_decay=0), partial(optim.SGD)]
)
def test_a_decay_that_nobody_typed_is_taken_over(make_optimizer):
    optimizer = make_optimizer(network(2).parameters())
    MemberDecay([0.0, 1.0]).take_over(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_a_typed_decay_of_one_of_several_groups_is_refused():
    first, *others = network(2).parameters()
    optimizer = optim.SGD([{"params": [first]}, {"params": others, "weight_decay": 0.3}])
    with pytest.raises(ValueError, match=r"given twice: 0\.3"):
        MemberDecay([0.0, 1.0]).take_over(optimizer)


@pytest.mark.parametrize("kind", [optim.LBFGS, optim.Rprop])
def test_an_optimizer_without_a_decay_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} has no weight_decay"):
        MemberDecay([0.0, 1.0]).take_over(kind(network(2).parameters()))


@pytest.mark.parametrize("decays", [[-0.1], [0.5, -1e-9]])
def test_growth_is_refused(decays):
    with pytest.raises(ValueError, match="weight_decay: expected at least 0, got -"):
        MemberDecay(decays)


def test_elementwise_optimizers_are_let_through():
    for kind in ELEMENTWISE:
        check_elementwise(kind([nn.Parameter(torch.zeros(2, 2))], lr=0.1))


@pytest.mark.parametrize("name", ["LBFGS", "Muon", "Adafactor"])
def test_optimizers_that_mix_entries_are_refused_by_name(name):
    kind = getattr(optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = kind([nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(ValueError, match=f"optimizer {name}: .* population of one, or one of SGD, Adam"):
        check_elementwise(optimizer)


def module(members, make_optimizer, **options):
    return MLP(n_inputs=6, hidden=(4,), optimizer=make_optimizer, members=members, **options)


@pytest.mark.parametrize("name", ["LBFGS", "Muon"])
def test_the_module_refuses_them_for_two_members(name):
    kind = getattr(optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    population = module({"seed": [0, 1]}, kind)
    population.configure_model()
    # torch itself refuses Muon for parameters of three axes; either way the user is told the name.
    with pytest.raises(ValueError, match=name):
        population.configure_optimizers()


def test_one_member_may_use_any_optimizer():
    one = module({"seed": [0]}, partial(optim.LBFGS, lr=0.1))
    one.configure_model()
    assert isinstance(one.configure_optimizers(), optim.LBFGS)


def test_the_module_refuses_a_typed_decay_and_a_negative_one():
    members = {"seed": [0, 0], "weight_decay": [0.0, 1.0]}
    population = module(members, partial(optim.SGD, lr=0.1, weight_decay=0.3))
    population.configure_model()
    with pytest.raises(ValueError, match=r"given twice: 0\.3"):
        population.configure_optimizers()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        module({"seed": [0, 0], "weight_decay": [0.0, -1.0]}, optim.SGD)


def test_the_decay_of_the_default_optimizer_gives_way_to_the_coordinate():
    # Nobody typed the 0.01 of the paper.
    population = MLP(n_inputs=6, hidden=(4,), members={"seed": [0, 0], "weight_decay": [0.0, 1.0]})
    population.configure_model()
    optimizer = population.configure_optimizers()
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["lr"] == 0.1


def fitted(members, make_optimizer, **options):
    quiet = ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"]
    trained = module(members, make_optimizer)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=10, precision="64-true", **dict.fromkeys(quiet, False), **options
    )
    trainer.fit(trained, TableData(SparseParity(6, 2), 20, 10, 8, members=members))
    return trained


@pytest.mark.parametrize("make_optimizer", [COUPLED["SGD"], COUPLED["Adam"], DECOUPLED["AdamW"]])
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}])
def test_a_coordinate_trains_as_the_optimizers_own_decay_does(make_optimizer, clip):
    # Clipping is for the gradient of the loss: torch adds its decay, in step(), after Lightning has clipped.
    decays = [0.0, 0.1, 2.0]
    population = fitted({"seed": [0, 0, 1], "weight_decay": decays}, make_optimizer, **clip)
    for e, (seed, decay) in enumerate(zip([0, 0, 1], decays, strict=True)):
        solo = fitted({"seed": [seed]}, partial(make_optimizer, weight_decay=decay), **clip)
        for p, q in zip(population.parameters(), solo.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-11, atol=1e-12)


def test_clipping_by_norm_leaves_the_decay_of_one_member_alone():
    clip = {"gradient_clip_val": 1e-3}
    coordinate = fitted({"seed": [0], "weight_decay": [2.0]}, COUPLED["SGD"], **clip)
    typed = fitted({"seed": [0]}, partial(COUPLED["SGD"], weight_decay=2.0), **clip)
    for p, q in zip(coordinate.parameters(), typed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
