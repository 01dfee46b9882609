"""The experiments do what the headers of their configs say, within bands that other seeds and machines keep too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from grok_lightning import Run
from grok_lightning import open as open_run
from grok_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


def fit(name: str) -> Run:
    """Run a config as it stands, in the current directory."""
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml")])
    return open_run(Path("runs") / name)


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of configs/parity.yaml, which other experiments start from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parity"))
        patch.setattr("sys.argv", ["grok"])
        run = fit("parity")
        return Run(run.directory.absolute())


@pytest.mark.slow
def test_parity_memorises_then_groks(parity: Run) -> None:
    """Bands around nine seeds of an independent NumPy run: memorised at epochs 20-38, generalised at 113-174."""
    onset = parity.record["onset"]["step"]
    epochs = onset / parity.record.attrs["steps_per_epoch"]
    memorised, generalised = (epochs.sel(event=event).values for event in ("memorised", "generalised"))
    held_out = parity.record["curves"]["accuracy"].sel(split="held_out")
    then = [float(held_out.isel(member=e).sel(step=int(step))) for e, step in enumerate(onset.sel(event="memorised"))]
    assert len(then) == 5
    assert ((memorised >= 10) & (memorised <= 60)).all(), memorised
    assert ((generalised >= 80) & (generalised <= 220)).all(), generalised
    assert ((np.array(then) >= 0.40) & (np.array(then) <= 0.60)).all(), then
    assert 15 <= np.median(memorised) <= 45
    assert 100 <= np.median(generalised) <= 180

    # The network that is handed out is the one that was measured.
    network, inputs = parity.network(member=2), torch.randint(2, (4000, 40)) * 2.0 - 1
    agrees = network.logits(inputs).squeeze(-1).sign() == inputs[:, :3].prod(dim=1)
    assert float(agrees.float().mean()) > 0.98


@pytest.mark.slow
def test_parity_becomes_sparse(parity: Run) -> None:
    """Merrill, Tsilivis, Shukla 2023, Figure 2 right: from hundreds of neurons to about {6, 6, 6, 8, 8}."""
    size = parity.record["sparse_subnetwork"]["size"]
    epoch = size["step"] / 32
    early = size.sel(rule="accuracy").where((epoch >= 10) & (epoch <= 100), drop=True)
    late = size.sel(rule="predictions").where(epoch >= 250, drop=True)
    assert float(early.mean()) > 200
    medians = late.median("step").values
    assert ((medians >= 4) & (medians <= 14)).all(), medians


@pytest.mark.slow
def test_the_generalizing_subnetwork_wins(parity: Run) -> None:
    """Figure 3 of the same paper."""
    group = parity.record["subnetworks"].to_dataset()
    memorised = parity.record["onset"]["step"].sel(event="memorised")
    ratio = group["norm"].sel(set="generalizing") / group["norm"].sel(set="complementary")
    agreement = group["agreement"].sel(split="held_out").isel(step=-1)
    then = group.isel(step=abs(group["step"] - memorised).argmin("step"))
    assert (agreement.sel(set="generalizing") > 0.98).all(), agreement.values
    assert (agreement.sel(set="complementary") < 0.95).all(), agreement.values
    assert (ratio.isel(step=-1) > 10).all(), ratio.values[-1]
    at_memorisation = (then["norm"].sel(set="generalizing") / then["norm"].sel(set="complementary")).values
    assert ((at_memorisation >= 0.85) & (at_memorisation <= 1.5)).all(), at_memorisation
    assert (then["overlap"] <= 1).all(), then["overlap"].values
    # A true parity of three bits is sensitive to three.
    np.testing.assert_allclose(group["sensitivity"].sel(network="generalizing").isel(step=-1), 3, atol=0.1)


@pytest.mark.slow
def test_what_generalises_costs_nearly_the_least_norm(parity: Run) -> None:
    """``theory least_norm``; Propositions 1 to 3 have 0.38, 0.29 and 0.89, initial networks about 0."""
    group = parity.record["parity_circuits"].to_dataset()
    efficiency = group["efficiency"].transpose("step", "member").values
    assert (np.abs(efficiency[0]) < 0.1).all(), efficiency[0]
    assert (efficiency[-1] > 0.9).all(), efficiency[-1]
    assert (efficiency[-1] < 1).all(), efficiency[-1]
    assert (group["neurons"].sel(kind="neither").isel(step=-1) == 0).all()


@pytest.mark.slow
def test_a_lottery_ticket_groks_without_delay(parity: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What generalises does so as soon as it memorises; a member may fail to do either."""
    monkeypatch.chdir(parity.directory.parents[2])
    monkeypatch.setattr("sys.argv", ["grok"])
    epochs = fit("parity_lottery").record["onset"]["step"] / 32
    delay = (epochs.sel(event="generalised") - epochs.sel(event="memorised")).values
    assert np.isfinite(delay).sum() >= 2, delay
    assert (delay[np.isfinite(delay)] <= 30).all(), delay


@pytest.mark.slow
def test_parity_online_generalises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands around an independent NumPy run: 2,400-4,000 steps for five seeds; there is nothing to memorise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok"])
    onset = fit("parity_online").record["onset"]["step"]
    generalised = onset.sel(event="generalised").values
    assert ((generalised >= 1000) & (generalised <= 5500)).all(), generalised
    assert onset.sel(event="memorised").isnull().all()


@pytest.mark.slow
def test_modular_addition_groks_by_trigonometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands that an independent population of other seeds keeps, too: above 0.95 by step 550, above 0.99 by 1,200."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok"])
    record = fit("modular_addition_quick").record
    memorised = record["onset"]["step"].sel(event="memorised").values
    held_out = record["curves"]["accuracy"].isel(step=-1)
    assert (memorised <= 500).all(), memorised
    for split in ("held_out", "held_out_unpaired"):
        assert (held_out.sel(split=split) > 0.9).all(), held_out.values
        assert (held_out.sel(split=split) > 0.97).sum() >= 3, held_out.values
    then = record["fourier"].to_dataset().sel(step=slice(None, 2000)).isel(step=-1)
    share = then["share"].sel(over="held_out")
    assert (share > 0.8).all(), share.values
    assert (then["restricted_loss"] < 0.1).sum() >= 4, then["restricted_loss"].values
    assert (then["excluded_loss"] > 1).all(), then["excluded_loss"].values
    assert ((then["key"].sum("frequency") >= 2) & (then["key"].sum("frequency") <= 9)).all()
    norm = record["parameter_norm"]["total"]
    assert (norm.isel(step=-1) < 0.9 * norm.max("step")).all()


@pytest.mark.slow
def test_a_network_forgets_when_rows_are_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Varma et al. 2023, Figure 7, in a tenth of the time of the quick configs: not converged, but far apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok"])
    main(["fit", "--config", str(CONFIGS / "full_table_quick.yaml"), "--trainer.max_steps=2000"])
    start = open_run(Path("runs") / "full_table_quick").record["curves"]["accuracy"].sel(split="train")
    assert (start.isel(step=-1) == 1).all()
    few = ["--population", "{train_size: [60, 640], weight_decay: [1.5], seed: [0, 1, 2]}", "--trainer.max_steps=2000"]
    main(["fit", "--config", str(CONFIGS / "ungrokking_quick.yaml"), *few])
    curves = open_run(Path("runs") / "ungrokking_quick").record["curves"].to_dataset()
    accuracy = curves["accuracy"]
    assert (accuracy.sel(split="held_out").isel(step=0) == 1).all(), "they begin where the others ended"
    assert (accuracy.sel(split="train") >= 0.95).all()
    end = accuracy.isel(step=-1).sel(split="held_out")
    assert (end.where(curves["train_size"] == 60, drop=True) < 0.35).all()
    assert (end.where(curves["train_size"] == 640, drop=True) > 0.85).all()


@pytest.mark.slow
def test_a_network_of_squares_groks_and_becomes_trigonometric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gromov 2023 (arXiv 2301.02679) has the network on paper; training comes to one like it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok"])
    record = fit("modular_addition_mlp").record
    onset = record["onset"]["step"]
    assert (onset.sel(event="memorised") <= 60).all(), onset.values
    assert (onset.sel(event="generalised") >= 300).all(), onset.values
    assert (onset.sel(event="generalised") <= 1800).all(), onset.values
    last = record["fourier"].to_dataset().isel(step=-1)
    assert (last["share"].sel(over="all") > 0.99).all(), last["share"].values
    explained = last["neuron_explained"].median("neuron").values
    assert ((explained > 0.75) & (explained < 0.87)).all(), explained
