import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD

from grok_callbacks import EveryNSteps, ParameterNorm
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import SparseParity


class Weights(Callback):
    def __init__(self):
        self.at = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at[trainer.global_step] = {n: p.detach().tolist() for n, p in pl_module.named_parameters()}


def norm_of(numbers):
    """By the definition, number by number."""

    def squares(x):
        return sum(map(squares, x)) if isinstance(x, list) else x * x

    return math.sqrt(squares(numbers))


@pytest.fixture
def fit(foreign, make_trainer):
    def run(*callbacks, module=None, **options):
        trainer = make_trainer(**({"max_epochs": 3, "callbacks": list(callbacks)} | options))
        torch.manual_seed(0)
        trainer.fit(foreign.module() if module is None else module, foreign.train_loader(), foreign.val_loader())
        return trainer

    return run


def test_norms_of_a_foreign_module_are_those_of_its_weights_at_each_step(fit):
    monitor, weights = ParameterNorm(EveryNSteps(2)), Weights()
    fit(weights, monitor)
    assert monitor.steps.tolist() == [0, 2, 4, 6, 8]
    names = ["encoder.fc1.weight", "encoder.fc1.bias", "encoder.fc2.weight", "encoder.fc2.bias"]
    assert list(monitor.labels["tensor"]) == names
    for i, step in enumerate(monitor.steps.tolist()):
        norms = [norm_of(weights.at[step][name]) for name in names]
        assert monitor.history["norm"][i, 0].tolist() == pytest.approx(norms, rel=1e-12)
        assert monitor.history["total"][i].tolist() == pytest.approx([norm_of(norms)], rel=1e-12)
    assert {name: dims for name, (dims, _) in monitor.record().items()} == {
        "step": ("step",),
        "total": ("step", "member"),
        "norm": ("step", "member", "tensor"),
    }
    assert monitor.history["norm"].dtype == monitor.history["total"].dtype == torch.float64


@pytest.mark.parametrize("seeds", [[4], [3, 4, 5]])
def test_every_member_has_its_own(make_trainer, seeds):
    monitor, weights, members = ParameterNorm(EveryNSteps(1)), Weights(), {"seed": seeds}
    data = TableData(SparseParity(6, 2), train_size=20, batch_size=10, members=members)
    module = MLP(6, 1, hidden=[5], optimizer=lambda parameters: SGD(parameters, lr=0.1), members=members)
    make_trainer(max_epochs=2, callbacks=[weights, monitor]).fit(module, datamodule=data)
    for i, step in enumerate(monitor.steps.tolist()):
        for e in range(len(seeds)):
            norms = [norm_of(value[e]) for value in weights.at[step].values()]
            assert monitor.history["norm"][i, e].tolist() == pytest.approx(norms, rel=1e-12)
            assert float(monitor.history["total"][i, e]) == pytest.approx(norm_of(norms), rel=1e-12)


def measured(fit, module):
    monitor = ParameterNorm(EveryNSteps(1))
    fit(monitor, module=module, max_epochs=1)
    return monitor


def test_a_tensor_under_two_names_counts_once_and_one_that_is_not_trained_counts(fit, foreign):
    module = foreign.module()
    module.again = module.encoder.fc1
    module.kept = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
    module.scalar = nn.Parameter(torch.tensor(-3.0), requires_grad=False)
    monitor = measured(fit, module)
    assert len(monitor.labels["tensor"]) == 6
    found = dict(zip(monitor.labels["tensor"], monitor.history["norm"][0, 0].tolist(), strict=True))
    assert found["kept"] == pytest.approx(math.sqrt(12))
    assert found["scalar"] == 3


def test_names_are_plain_where_a_part_is_compiled(fit, foreign):
    module = foreign.module()
    names = list(dict(module.named_parameters()))
    module.encoder = torch.compile(module.encoder, backend="eager")
    assert list(measured(fit, module).labels["tensor"]) == names
    torch.compiler.reset()


def test_nan_propagates(fit, foreign):
    class Diverges(foreign.module):
        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                self.encoder.fc2.bias[0] = torch.nan

    monitor = measured(fit, Diverges())
    assert monitor.history["total"].isnan().squeeze(1).tolist() == [False, True, True, True]
    assert monitor.history["norm"][0].isfinite().all()


def test_bfloat16_numbers_are_added_up_in_float64(fit, foreign):
    module = foreign.module()
    module.many = nn.Parameter(torch.full((10_000,), 0.5, dtype=torch.bfloat16), requires_grad=False)
    assert float(measured(fit, module).history["norm"][0, 0, 0]) == 50.0


def test_scalars_are_means_over_members(fit, recording_logger):
    monitor = ParameterNorm(EveryNSteps(3), name="weights")
    fit(monitor, logger=recording_logger)
    assert recording_logger.values("weights/total") == monitor.history["total"].mean(dim=1).tolist()
    assert recording_logger.steps("weights/total") == [0, 3, 6, 9]
    assert monitor.scalars({"total": torch.tensor([1.0, 3.0])}) == {"total": 2.0}


def test_names_outlive_a_checkpoint(fit):
    monitor, again = ParameterNorm(EveryNSteps(3)), ParameterNorm(EveryNSteps(3))
    fit(monitor)
    again.load_state_dict(monitor.state_dict())
    assert again.labels == monitor.labels


def test_what_does_not_lead_with_the_members_is_refused_before_training(make_trainer):
    members = {"seed": [0, 1]}
    module = MLP(6, 1, hidden=[5], members=members)
    module.shared = nn.Parameter(torch.zeros(3))
    data = TableData(SparseParity(6, 2), train_size=20, members=members)
    with pytest.raises(ValueError, match=r"expected 'shared' to lead with 2 members, got \(3,\)"):
        make_trainer(max_epochs=1, callbacks=[ParameterNorm()]).fit(module, datamodule=data)


def test_a_model_without_parameters_is_refused(make_trainer, foreign):
    class Empty(foreign.module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Identity()

    with pytest.raises(ValueError, match="the model has no parameters"):
        ParameterNorm().on_fit_start(make_trainer(), Empty())
