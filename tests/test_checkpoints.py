"""Checkpoint files: which there are, whether they are whole."""

import os

import pytest
import torch

from grok_lightning import checkpoints
from grok_lightning.checkpoints import checkpoint_fault, newest_checkpoint


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"hello", "cannot be read"),
        ({"weights": torch.zeros(2)}, "not a Lightning checkpoint"),
        (torch.zeros(2), "not a Lightning checkpoint"),
        ({"state_dict": {}, "global_step": 0}, None),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_checkpoint_is_told(tmp_path, content, fault):
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    found = checkpoint_fault(path)
    assert found is None if fault is None else fault in found


def test_every_truncation_of_a_checkpoint_is_noticed(tmp_path):
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"w": torch.arange(1000.0)}, "global_step": 0}, whole)
    content = whole.read_bytes()
    assert checkpoint_fault(whole) is None
    for length in [1, 10, len(content) // 2, len(content) - 100, len(content) - 1]:
        (tmp_path / "cut.ckpt").write_bytes(content[:length])
        found = checkpoint_fault(tmp_path / "cut.ckpt")
        assert found is not None, length
        assert len(found.splitlines()) == 1


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_looking_at_a_checkpoint_runs_no_code_of_it(tmp_path):
    torch.save({"state_dict": {}, "x": Malicious(tmp_path / "executed")}, tmp_path / "x.ckpt")
    assert checkpoint_fault(tmp_path / "x.ckpt") is not None
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists(), "it has code to run"


def save(path, step, time):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "global_step": step}, path)
    os.utime(path, (time, time))
    return path


def test_the_newest_whole_checkpoint_of_a_run_experiment_or_all_runs_is_found(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(checkpoints, "rank_zero_info", notes.append)
    save(tmp_path / "x" / "version_0" / "checkpoints" / "last.ckpt", 4, time=300)
    newest = save(tmp_path / "x" / "version_1" / "checkpoints" / "4.ckpt", 4, time=400)
    save(tmp_path / "x" / "version_1" / "checkpoints" / "2.ckpt", 2, time=350)
    broken = newest.with_name("last.ckpt")
    broken.write_bytes(newest.read_bytes()[:-50])
    os.utime(broken, (500, 500))
    assert newest_checkpoint(tmp_path / "x" / "version_1") == newest
    assert newest_checkpoint(tmp_path / "x") == newest
    assert newest_checkpoint(tmp_path) == newest
    assert newest_checkpoint(tmp_path / "x" / "version_0").name == "last.ckpt"
    assert any(str(broken) in note for note in notes)


@pytest.mark.parametrize("name", ["nowhere", "empty", "broken"])
def test_without_a_whole_checkpoint_the_place_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "broken" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=f"no whole checkpoint in .*{name}"):
        newest_checkpoint(tmp_path / name)
