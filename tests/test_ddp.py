"""Plain data-parallel training is training: two processes give one process's weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from xarray import Dataset

from grok_callbacks import LearningCurves, NeuronNormTracker, Onset
from grok_lightning import (
    MLP,
    GrokModule,
    LastCheckpoint,
    ModularArithmetic,
    OnlineData,
    Recorder,
    SparseParity,
    TableData,
    Task,
    Transformer,
)
from grok_lightning.batch import Batch
from grok_lightning.data import GrokData, StepLoader
from grok_lightning.records import read_record


def table(sizes: list[int], batch_size: int | None) -> TableData:
    return TableData(
        task=SparseParity(8, 2),
        n_held_out=101,
        batch_size=batch_size,
        label_noise=0.1,
        members={"seed": [0, 1], "train_size": list(sizes)},
    )


def online(batch_size: int) -> OnlineData:
    return OnlineData(task=SparseParity(8, 2), n_held_out=101, batch_size=batch_size, members={"seed": [0, 1]})


def modular(sizes: list[int], batch_size: int | None) -> TableData:
    return TableData(
        ModularArithmetic(p=7),
        n_held_out=None,
        split="symmetric",
        batch_size=batch_size,
        members={"seed": [0, 1], "train_size": list(sizes), "weight_decay": [1.0, 0.3]},
    )


def train(folder: Path, data: GrokData, processes: int, module: GrokModule | None = None) -> dict[str, torch.Tensor]:
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
            NeuronNormTracker(
                layer="network.layers.0.mlp_in" if isinstance(module, Transformer) else "network.hidden.0"
            ),
            LastCheckpoint(),
            Recorder(),
        ],
    )
    module = module or MLP(n_inputs=8, hidden=[16], members=data.members)
    trainer.fit(module, datamodule=data)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        pytest.param(table, ([80, 80], 32), id="an odd last batch of 16"),
        pytest.param(table, ([81, 81], 10), id="a last batch of one row: nothing for the second process"),
        pytest.param(table, ([75, 33], 25), id="members of two sizes, uneven shards"),
        pytest.param(table, ([75, 33], None), id="full batch"),
        pytest.param(online, (7,), id="fresh rows, uneven shards"),
        pytest.param(modular, ([40, 30], 9), id="modular addition, members of two sizes, uneven shards"),
        pytest.param(modular, ([40, 40], None), id="modular addition, full batch"),
    ],
)
# Forking after threads were started is what these tests do on purpose; the children run no threads of their own.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_give_the_weights_and_the_record_of_one(
    tmp_path: Path, make: Callable[..., GrokData], arguments: tuple[Any, ...]
) -> None:
    def run(name: str, processes: int) -> dict[str, torch.Tensor]:
        data = make(*arguments)
        module = None
        if make is modular:
            sizes = {"d_model": 8, "n_heads": 2, "d_mlp": 12}
            module = Transformer(data.n_inputs, data.n_tokens, data.n_outputs, **sizes, members=data.members)
        return train(tmp_path / name, data, processes, module)

    alone, together = run("one", processes=1), run("two", processes=2)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-9)
    one, two = (read_record(tmp_path / name / "records.nc") for name in ("one", "two"))
    assert (int(one.attrs["devices"]), int(two.attrs["devices"])) == (1, 2)
    for group in ("curves", "onset", "neuron_norms"):
        assert set(one[group].data_vars) == set(two[group].data_vars)
        for name, array in one[group].data_vars.items():
            ours, theirs = torch.tensor(two[group][name].values), torch.tensor(array.values)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, equal_nan=True)


class OneHot(Task):
    """a + b mod 6 for numbers, not tokens: one-hot a, one-hot b."""

    n_inputs, n_outputs, size = 12, 6, 36

    def table(self) -> torch.Tensor:
        one_hot = torch.eye(6)
        return torch.cat([one_hot.repeat_interleave(6, dim=0), one_hot.repeat(6, 1)], dim=1)

    def label(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs[:, :6].argmax(dim=1) + inputs[:, 6:].argmax(dim=1)) % 6

    def mirror(self) -> torch.Tensor:
        return torch.arange(36).reshape(6, 6).T.flatten()


@pytest.mark.parametrize(
    ("sizes", "n_held_out"),
    [
        pytest.param([21, 14], None, id="15 and 22 held-out rows"),
        pytest.param([35, 34], None, id="one and two: a member has nothing in the second process"),
        pytest.param([20, 14], 1, id="one: nothing at all in the second process"),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_tell_the_same_rows_apart(tmp_path: Path, sizes: list[int], n_held_out: int | None) -> None:
    def curves(processes: int) -> Dataset:
        members = {"seed": [0, 1], "train_size": sizes}
        data = TableData(OneHot(), n_held_out=n_held_out, batch_size=None, members=members)
        folder = tmp_path / str(processes)
        train(folder, data, processes, MLP(12, 6, hidden=[8], loss="cross_entropy", members=members))
        return read_record(folder / "records.nc")["curves"].to_dataset()

    one, two = curves(1), curves(2)
    assert one["split"].values.tolist() == ["train", "held_out", "held_out_unpaired"]
    assert two["split"].values.tolist() == one["split"].values.tolist()
    shares = one["unpaired_share"].values
    assert (shares == shares[0]).all()
    for name in ("loss", "accuracy", "unpaired_share"):
        ours, theirs = torch.tensor(two[name].values), torch.tensor(one[name].values)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_without_the_weights_of_rows_uneven_shards_train_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: the mean of two uneven shards' means is another mean."""
    alone = train(tmp_path / "one", table([82, 82], 27), processes=1)
    weighted = StepLoader._shard

    def unweighted(self: StepLoader, *rows: torch.Tensor | None) -> Batch:
        return weighted(self, *rows)._replace(weights=None)

    monkeypatch.setattr(StepLoader, "_shard", unweighted)
    together = train(tmp_path / "two", table([82, 82], 27), processes=2)
    assert not torch.allclose(together["network.hidden.0.weight"], alone["network.hidden.0.weight"], rtol=0, atol=1e-6)
