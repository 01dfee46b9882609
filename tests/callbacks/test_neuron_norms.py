import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from grok_callbacks import EveryNSteps, LogSpaced, NeuronNormTracker

# A fork is what a worker is; newer Pythons say so where threads exist.
WORKERS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Weights(Callback):
    """Notes both weights after every step, as nested lists."""

    def __init__(self):
        self.at = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        weights = pl_module.encoder.fc1.weight.tolist(), pl_module.encoder.fc2.weight.tolist()
        self.at[trainer.global_step] = weights


def norm(numbers):
    return math.sqrt(math.fsum(x * x for x in numbers))


def expected_norms(weights, kind):
    first, second = weights
    incoming = [norm(row) for row in first]
    outgoing = [norm(column) for column in zip(*second, strict=True)]
    return {
        "incoming": incoming,
        "outgoing": outgoing,
        "product": [i * o for i, o in zip(incoming, outgoing, strict=True)],
    }[kind]


@pytest.fixture
def fit(foreign, make_trainer):
    def run(*callbacks, module=None, workers=0, **options):
        trainer = make_trainer(**({"max_epochs": 2, "callbacks": list(callbacks)} | options))
        module = foreign.module() if module is None else module
        trainer.fit(module, foreign.train_loader(workers), foreign.val_loader(workers))
        return trainer

    return run


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=WORKERS)])
@pytest.mark.parametrize("kind", ["incoming", "outgoing", "product"])
def test_norms_of_a_foreign_module_are_those_of_its_weights_at_each_step(fit, kind, workers):
    following = None if kind == "incoming" else "encoder.fc2"
    tracker = NeuronNormTracker("encoder.fc1", weights=kind, next_layer=following, schedule=EveryNSteps(2))
    weights = Weights()
    fit(weights, tracker, workers=workers)
    assert tracker.steps.tolist() == [0, 2, 4, 6]
    assert tracker.history["norm"].shape == (4, 1, 6)
    expected = torch.tensor([[expected_norms(weights.at[step], kind)] for step in (0, 2, 4, 6)])
    torch.testing.assert_close(tracker.history["norm"], expected, rtol=1e-5, atol=0)
    assert not torch.equal(expected[0], expected[-1])  # the weights did change


def test_by_default_it_measures_incoming_weights_log_spaced():
    tracker = NeuronNormTracker("encoder.fc1")
    assert tracker.schedule == LogSpaced(40)
    assert tracker.attributes() == {"layer": "encoder.fc1", "weights": "incoming", "next_layer": ""}


def test_scalars_are_means_over_members_of_what_the_norms_say(fit, recording_logger):
    tracker = NeuronNormTracker("encoder.fc1", schedule=EveryNSteps(2))
    fit(tracker, logger=recording_logger)
    assert recording_logger.steps("neuron_norms/mean") == [0, 2, 4, 6]
    for i, norms in enumerate(tracker.history["norm"][:, 0].tolist()):
        squares = [n * n for n in norms]
        effective = sum(squares) ** 2 / sum(s * s for s in squares)
        assert recording_logger.values("neuron_norms/mean")[i] == pytest.approx(sum(norms) / 6, rel=1e-6)
        assert recording_logger.values("neuron_norms/max")[i] == pytest.approx(max(norms), rel=1e-6)
        assert recording_logger.values("neuron_norms/effective")[i] == pytest.approx(effective, rel=1e-6)


@pytest.mark.parametrize(
    ("norms", "mean", "largest", "effective"),
    [
        ([[2.0]], 2, 2, 1),
        ([[3.0, 0.0, 0.0]], 1, 3, 1),
        ([[2.0, 2.0, 2.0, 2.0]], 2, 2, 4),
        ([[3.0, 0.0], [1.0, 1.0]], 1.25, 2, 1.5),
        ([[0.0, 0.0]], 0, 0, math.nan),
    ],
)
def test_the_effective_number_of_neurons_lies_between_one_and_all(norms, mean, largest, effective):
    scalars = NeuronNormTracker("layer").scalars({"norm": torch.tensor(norms)})
    assert scalars == pytest.approx({"mean": mean, "max": largest, "effective": effective}, nan_ok=True)


def test_the_effective_number_survives_tiny_float32_norms():
    # Fourth powers of these are 0 in float32.
    scalars = NeuronNormTracker("layer").scalars({"norm": torch.full((1, 5), 1e-15)})
    assert scalars["effective"] == pytest.approx(5)


def test_a_module_with_members_has_weights_that_lead_with_them(foreign, fit):
    class OfThree(foreign.module):
        n_members = 3

        def __init__(self):
            super().__init__()
            self.stack = nn.Module()
            self.stack.weight = nn.Parameter(torch.arange(24.0).reshape(3, 2, 4))

    tracker = NeuronNormTracker("stack", schedule=EveryNSteps(6))
    fit(tracker, module=OfThree())
    assert tracker.history["norm"].shape == (2, 3, 2)
    expected = [[norm(range(8 * e + 4 * i, 8 * e + 4 * i + 4)) for i in range(2)] for e in range(3)]
    torch.testing.assert_close(tracker.history["norm"][0], torch.tensor(expected))


def test_a_compiled_encoder_is_reached_by_its_plain_name(foreign, make_trainer):
    module = foreign.module()
    module.encoder = torch.compile(module.encoder, backend="eager")
    assert "encoder._orig_mod.fc1" in dict(module.named_modules())
    tracker = NeuronNormTracker("encoder.fc1", "product", "encoder.fc2")
    tracker.on_fit_start(make_trainer(), module)
    values = tracker.measure(make_trainer(), module)
    assert values["norm"].shape == (1, 6)


class Trains(Callback):
    def __init__(self):
        self.began = False

    def on_train_start(self, trainer, pl_module):
        self.began = True


@pytest.mark.parametrize("path", ["fc1", "encoder.fc3", "encoder.fc1.weight", ""])
def test_a_layer_that_does_not_exist_fails_before_training_with_the_layers_that_do(fit, path):
    trains = Trains()
    with pytest.raises(ValueError, match=f"no '{path}'; it has encoder, encoder.fc1, encoder.fc2"):
        fit(trains, NeuronNormTracker(path))
    assert not trains.began


def test_a_following_layer_that_does_not_exist_fails_before_training(fit):
    trains = Trains()
    with pytest.raises(ValueError, match="no 'decoder'; it has encoder"):
        fit(trains, NeuronNormTracker("encoder.fc1", "outgoing", "decoder"))
    assert not trains.began


def test_a_layer_without_a_weight_is_refused_before_training(fit):
    trains = Trains()
    with pytest.raises(ValueError, match=r"'encoder\.act' has no weight"):
        fit(trains, NeuronNormTracker("encoder.act"))
    assert not trains.began


def test_layers_that_do_not_follow_each_other_are_refused_before_training(fit):
    trains = Trains()
    with pytest.raises(ValueError, match=r"got \(1, 2, 6\) and \(1, 6, 4\)"):
        fit(trains, NeuronNormTracker("encoder.fc2", "product", "encoder.fc1"))
    assert not trains.began


@pytest.mark.parametrize(
    ("members", "layer", "rank"),
    [(None, nn.Conv1d(2, 3, 1), 2), (None, nn.LayerNorm(3), 2), (2, nn.Linear(2, 3), 3)],
)
def test_a_weight_of_another_rank_is_refused(make_trainer, members, layer, rank):
    class OfTwo(LightningModule):
        n_members = 2

    module = LightningModule() if members is None else OfTwo()
    module.layer = layer
    with pytest.raises(ValueError, match=f"expected 'layer' to have a weight of {rank} dimensions, got "):
        NeuronNormTracker("layer").on_fit_start(make_trainer(), module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "both"}, "weights: expected 'incoming', 'outgoing' or 'product', got 'both'"),
        ({"weights": "outgoing"}, "next_layer: needed for .* got None"),
        ({"weights": "product"}, "next_layer: needed for .* got None"),
        ({"next_layer": "fc2"}, "nothing else, got 'fc2'"),
        ({"name": "Neuron norms"}, "name: expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeuronNormTracker("fc1", **options)


def events(path):
    accumulator = EventAccumulator(str(path), size_guidance={"histograms": 0, "scalars": 0})  # 0 keeps all
    accumulator.Reload()
    return accumulator


def test_tensorboard_gets_histograms_and_scalars_at_the_measured_steps(fit, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    tracker = NeuronNormTracker("encoder.fc1", schedule=EveryNSteps(2), name="norms")
    fit(tracker, logger=logger)
    written = events(logger.log_dir)
    assert written.Tags()["histograms"] == ["norms/norm"]
    histograms = written.Histograms("norms/norm")
    assert [event.step for event in histograms] == [0, 2, 4, 6]
    for event, norms in zip(histograms, tracker.history["norm"], strict=True):
        assert event.histogram_value.num == 6
        assert event.histogram_value.max == pytest.approx(float(norms.max()))
        assert event.histogram_value.sum == pytest.approx(float(norms.sum()), rel=1e-6)
    assert [event.step for event in written.Scalars("norms/effective")] == [0, 2, 4, 6]


def test_histograms_can_be_left_out(fit, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(NeuronNormTracker("encoder.fc1", schedule=EveryNSteps(2), histograms=False), logger=logger)
    assert events(logger.log_dir).Tags()["histograms"] == []
    assert [event.step for event in events(logger.log_dir).Scalars("neuron_norms/mean")] == [0, 2, 4, 6]


def test_a_logger_that_cannot_draw_gets_the_scalars(fit, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    fit(NeuronNormTracker("encoder.fc1", schedule=EveryNSteps(3)), logger=logger)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    step, mean = header.split(",").index("step"), header.split(",").index("neuron_norms/mean")
    measured = [row.split(",") for row in rows if row.split(",")[mean]]
    assert [int(row[step]) for row in measured] == [0, 3, 6]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_diverged_is_measured_and_training_goes_on(foreign, fit, tmp_path, bad):
    module = foreign.module()
    with torch.no_grad():
        module.encoder.fc1.weight.fill_(bad)
    tracker = NeuronNormTracker("encoder.fc1", schedule=EveryNSteps(3))
    fit(tracker, module=module, logger=TensorBoardLogger(tmp_path, name="", version=""))
    assert tracker.steps.tolist() == [0, 3, 6]
    assert not tracker.history["norm"].isfinite().any()


def test_drawing_asks_for_a_logger_by_the_name_of_its_class():
    drawn = []
    experiment = SimpleNamespace(add_histogram=lambda *args: drawn.append(args))
    older = type("TensorBoardLogger", (), {"experiment": experiment})()
    other = type("OtherLogger", (), {"experiment": experiment})()
    for logger in (older, other):
        NeuronNormTracker("fc1").draw(logger, 7, {"norm": torch.ones(1, 2)})
    assert [(tag, step) for tag, _, step in drawn] == [("neuron_norms/norm", 7)]


FOREIGN_SCRIPT = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from grok_callbacks import NeuronNormTracker

class Theirs(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

tracker = NeuronNormTracker("net.0")
trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Theirs(), DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8, 1)), batch_size=4, shuffle=True))
loaded = {name.split(".")[0] for name in sys.modules}
assert "grok_lightning" not in loaded
print(trainer.global_step)
"""


def test_a_foreign_script_trains_with_it_and_never_loads_our_package(tmp_path):
    script = FOREIGN_SCRIPT.replace("trainer = Trainer(", "trainer = Trainer(callbacks=[tracker], ")
    script += "print(tracker.steps.tolist())\n"
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == ["2", "[0, 1, 2]"], done.stderr
