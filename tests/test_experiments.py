"""The experiments do what the headers of their configs say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grok_lightning import open as open_run
from grok_lightning.cli import main


@pytest.mark.slow
def test_parity_memorises_then_groks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands around nine seeds of an independent NumPy run: memorised at epochs 20-38, generalised at 113-174."""
    config = Path(__file__).parents[1] / "configs" / "parity.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grok"])
    main(["fit", "--config", str(config)])

    run = open_run(tmp_path / "runs")
    onset = run.record["onset"]["step"]
    epochs = onset / run.record.attrs["steps_per_epoch"]
    memorised, generalised = (epochs.sel(event=event).values for event in ("memorised", "generalised"))
    held_out = run.record["curves"]["accuracy"].sel(split="held_out")
    then = [float(held_out.isel(member=e).sel(step=int(step))) for e, step in enumerate(onset.sel(event="memorised"))]
    assert len(then) == 5
    assert ((memorised >= 10) & (memorised <= 60)).all(), memorised
    assert ((generalised >= 80) & (generalised <= 220)).all(), generalised
    assert ((np.array(then) >= 0.40) & (np.array(then) <= 0.60)).all(), then
    assert 15 <= np.median(memorised) <= 45
    assert 100 <= np.median(generalised) <= 180

    # The network that is handed out is the one that was measured.
    network, inputs = run.network(member=2), torch.randint(2, (4000, 40)) * 2.0 - 1
    agrees = network.logits(inputs).squeeze(-1).sign() == inputs[:, :3].prod(dim=1)
    assert float(agrees.float().mean()) > 0.98
