"""Plain data-parallel training is training: two processes give one process's weights."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from grok_callbacks import LearningCurves, NeuronNormTracker, Onset
from grok_lightning import MLP, LastCheckpoint, Recorder, SparseParity, TableData
from grok_lightning.batch import Batch
from grok_lightning.data import StepLoader
from grok_lightning.records import read_record


def members(sizes: list[int]) -> dict[str, list[int | float]]:
    return {"seed": [0, 1], "train_size": list(sizes)}


def train(folder: Path, sizes: list[int], batch_size: int | None, processes: int) -> dict[str, torch.Tensor]:
    """Fit 200 steps in float64 and return the weights, by way of the checkpoint."""
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        precision="64-true",
        max_steps=200,
        val_check_interval=50,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            LearningCurves(),
            Onset(),
            NeuronNormTracker(layer="network.hidden.0"),
            LastCheckpoint(),
            Recorder(),
        ],
    )
    data = TableData(
        task=SparseParity(8, 2), n_held_out=101, batch_size=batch_size, label_noise=0.1, members=members(sizes)
    )
    trainer.fit(MLP(n_inputs=8, hidden=[16], members=members(sizes)), datamodule=data)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("sizes", "batch_size"),
    [
        pytest.param([80, 80], 32, id="an odd last batch of 16"),
        pytest.param([81, 81], 10, id="a last batch of one row: nothing for the second process"),
        pytest.param([75, 33], 25, id="members of two sizes, uneven shards"),
        pytest.param([75, 33], None, id="full batch"),
    ],
)
# Forking after threads were started is what these tests do on purpose; the children run no threads of their own.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_give_the_weights_and_the_record_of_one(
    tmp_path: Path, sizes: list[int], batch_size: int | None
) -> None:
    alone = train(tmp_path / "one", sizes, batch_size, processes=1)
    together = train(tmp_path / "two", sizes, batch_size, processes=2)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-9)
    one, two = (read_record(tmp_path / name / "records.nc") for name in ("one", "two"))
    assert (int(one.attrs["devices"]), int(two.attrs["devices"])) == (1, 2)
    for group in ("curves", "onset", "neuron_norms"):
        assert set(one[group].data_vars) == set(two[group].data_vars)
        for name, array in one[group].data_vars.items():
            ours, theirs = torch.tensor(two[group][name].values), torch.tensor(array.values)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_without_the_weights_of_rows_uneven_shards_train_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: the mean of two uneven shards' means is another mean."""
    alone = train(tmp_path / "one", [82, 82], 27, processes=1)
    weighted = StepLoader._shard

    def unweighted(self: StepLoader, *rows: torch.Tensor | None) -> Batch:
        return weighted(self, *rows)._replace(weights=None)

    monkeypatch.setattr(StepLoader, "_shard", unweighted)
    together = train(tmp_path / "two", [82, 82], 27, processes=2)
    assert not torch.allclose(together["network.hidden.0.weight"], alone["network.hidden.0.weight"], rtol=0, atol=1e-6)
