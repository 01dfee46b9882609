"""Every config that is shipped runs, and says how to run it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from grok_lightning import open as open_run
from grok_lightning.cli import main

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

# Experiments that begin with the run of another one.
GO_ON_FROM = {
    "parity_lottery.yaml": "parity.yaml",
    "parity_ungrokking.yaml": "parity.yaml",
    "ungrokking.yaml": "full_table.yaml",
    "ungrokking_quick.yaml": "full_table_quick.yaml",
}


def test_there_are_configs():
    """Without one, the tests below would pass by doing nothing."""
    assert CONFIGS
    assert all(path.suffix == ".yaml" and path.is_file() for path in FOLDER.iterdir()), "flat, and nothing else"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_config_takes_two_steps(config, elsewhere):
    if config.name in GO_ON_FROM:
        start = ["--config", str(FOLDER / GO_ON_FROM[config.name]), "--trainer.max_steps=2"]
        main(["fit", *start, "--trainer.enable_progress_bar=false"])
    before = list(elsewhere.iterdir())
    main(["fit", "--config", str(config), "--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"])
    assert list(elsewhere.iterdir()) == before


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_the_header_of_a_config_holds_a_command_that_names_it(config, capsys):
    header = re.match(r"(#.*\n)+", config.read_text())
    assert header, "a config begins with a comment"
    commands = re.findall(r"^# +python -m grok_lightning (.+)$", header[0], re.MULTILINE)
    own = [shlex.split(command) for command in commands if f"configs/{config.name}" in command.split()]
    assert own, f"no command with configs/{config.name} among {commands}"
    for arguments in own:
        with pytest.raises(SystemExit) as stopped:
            # As typed by somebody who has the package and not its sources.
            main([*arguments, "--print_config"])
        printed = capsys.readouterr()
        assert stopped.value.code in (0, None), printed.err
        assert "Unable to serialize" not in printed.out + printed.err, "what is printed can be fed back"


@pytest.mark.parametrize(
    "axis", ["init_seed: [0, 1]", "train_size: [70, 40]", "weight_decay: [0.0, 0.1]", "label_noise: [0.0, 0.1]"]
)
def test_every_axis_of_the_readme_can_be_swept_with_all_that_watches_parity(axis, elsewhere):
    small = ["--model.hidden", "[8]", "--data.n_held_out", "20", "--trainer.max_epochs", "2"]
    decay = ["--model.optimizer.weight_decay", "0"]
    quiet = ["--trainer.enable_progress_bar=false"]
    main(
        [
            "fit",
            "--config",
            str(FOLDER / "parity.yaml"),
            "--population",
            f"{{seed: [0], {axis}}}",
            *small,
            *decay,
            *quiet,
        ]
    )
    record = open_run(elsewhere / "runs").record
    assert record["sparse_subnetwork"].sizes["member"] == record["subnetworks"].sizes["member"] == 2
