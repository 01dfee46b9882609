"""Checkpoint files: which there are, whether they are whole."""

import os

import pytest
import torch

from grok_callbacks.files import unfinished
from grok_lightning import checkpoints
from grok_lightning.checkpoints import (
    checkpoint_fault,
    newest_checkpoint,
    read_checkpoint,
    step_of_checkpoint,
    usable_checkpoint,
    whole_checkpoints,
)


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


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (None, FileNotFoundError, "there is no such file"),
        (b"", ValueError, "empty"),
        (b"x", ValueError, "cannot be read"),
    ],
)
def test_reading_what_is_no_checkpoint_names_the_file(tmp_path, content, kind, says):
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=rf"x\.ckpt: .*{says}"):
        read_checkpoint(path)


def test_a_checkpoint_is_read_and_says_its_step(tmp_path):
    path = save(tmp_path / "x.ckpt", 4, time=300)
    assert read_checkpoint(path) == {"state_dict": {}, "global_step": 4}
    assert step_of_checkpoint(path) == 4


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


@pytest.mark.parametrize("times", [(300, 300), (300, 400), (300, 200)])
def test_the_one_before_the_last_is_never_newer_than_it(tmp_path, times):
    """Whatever copying has done to the times."""
    for name, step, time in zip(["last.ckpt", "previous.ckpt"], [20, 10], times, strict=True):
        save(tmp_path / name, step, time)
    save(tmp_path / "4.ckpt", 4, time=100)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["last.ckpt", "previous.ckpt", "4.ckpt"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "broken"])
def test_without_a_whole_checkpoint_the_place_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "broken" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=f"no whole checkpoint in .*{name}"):
        newest_checkpoint(tmp_path / name)


# A checkpoint that was named


@pytest.fixture
def notes(monkeypatch):
    notes = []
    monkeypatch.setattr(checkpoints, "rank_zero_info", notes.append)
    return notes


@pytest.fixture
def directory(tmp_path):
    """Whole checkpoints of steps 2, 4 and 6; the last one, of step 8, is cut short."""
    for step, name in [(2, "2.ckpt"), (4, "4.ckpt"), (6, "previous.ckpt"), (8, "last.ckpt")]:
        save(tmp_path / name, step, time=step)
    os.truncate(tmp_path / "last.ckpt", 50)
    os.utime(tmp_path / "last.ckpt", (8, 8))
    return tmp_path


def test_a_whole_checkpoint_is_the_one_that_was_named(directory, notes):
    assert usable_checkpoint(directory / "2.ckpt") == directory / "2.ckpt"
    assert notes == []


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_in_place_of_a_damaged_last_checkpoint_the_newest_whole_one_is_taken_and_told(directory, notes, damage):
    last, previous = directory / "last.ckpt", directory / "previous.ckpt"
    if damage == "empty":
        last.write_bytes(b"")
    elif damage == "missing":
        last.unlink()
    assert usable_checkpoint(last) == previous
    assert notes[-1].startswith(f"{last}: the")
    assert notes[-1].endswith(f"; going on with {previous}, of step 6")
    previous.unlink()
    assert usable_checkpoint(last) == directory / "4.ckpt"


@pytest.mark.parametrize("name", ["2.ckpt", "3.ckpt"])
def test_any_other_damaged_checkpoint_is_an_error_that_names_the_newest_whole_one(directory, notes, name):
    (directory / "2.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}: the.*; the newest whole .* is .*previous\.ckpt, of step 6$"):
        usable_checkpoint(directory / name)


@pytest.mark.parametrize("name", ["last.ckpt", "2.ckpt"])
def test_where_there_is_no_whole_one_the_fault_is_told(tmp_path, notes, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}: the file is empty$"):
        usable_checkpoint(tmp_path / name)


def test_what_is_being_written_is_not_taken_for_a_checkpoint(directory, notes):
    """Neither now nor after the process that wrote was killed."""
    save(directory / "checkpoints" / "x.ckpt", 6, time=6)
    whole = save(unfinished(directory / "checkpoints" / "last.ckpt"), 99, time=99)
    assert newest_checkpoint(directory).name == "x.ckpt"
    assert whole.is_file()
    assert notes == []
