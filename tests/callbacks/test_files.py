"""Files are replaced whole or not at all."""

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch

from grok_callbacks.files import WriteError, remove_leftovers, replacing, unfinished, write_tensors

OLD = b"the old file"


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    path = tmp_path / "x.ckpt"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def small_files():
    """No file may grow beyond 1000 bytes: what a full disk comes to."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(path):
    with replacing(path) as fresh:
        assert not fresh.exists()
        fresh.write_bytes(b"the")
        assert path.read_bytes() == OLD
        fresh.write_bytes(b"the new file")
        assert path.read_bytes() == OLD
    assert path.read_bytes() == b"the new file"
    assert names(path.parent) == [path.name]


def test_what_is_being_written_is_beside_its_place_and_matches_no_pattern(path):
    with replacing(path) as fresh:
        fresh.write_bytes(b"new")
        assert fresh.parent == path.parent
        assert fresh.name.startswith(".")
        assert [found.name for found in path.parent.glob("*.ckpt")] == [path.name]
        assert path.stem not in fresh.name


def test_torch_takes_the_name(path):
    """It wants something before the last dot."""
    with replacing(path) as fresh:
        torch.save({"x": torch.zeros(2)}, fresh)
    assert torch.load(path, weights_only=True)["x"].shape == (2,)


def test_two_writers_do_not_meet(path):
    with replacing(path) as one, replacing(path) as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        assert one != other
    assert path.read_bytes() == b"one", "the one that ended last"


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_any_kind_leaves_the_old_file_and_nothing_else(path, error):
    def write():
        with replacing(path) as fresh:
            fresh.write_bytes(b"the n")
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    assert raised.value is error
    assert path.read_bytes() == OLD
    assert names(path.parent) == [path.name]


def test_a_refusal_by_the_system_names_the_file_and_the_reason(path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(WriteError, match="No space left on device") as raised, replacing(path):
        raise full
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert raised.value.__cause__ is full
    assert path.read_bytes() == OLD


def test_a_refusal_that_was_named_keeps_its_name(path, tmp_path):
    with pytest.raises(WriteError) as raised, replacing(path), replacing(tmp_path / "inner") as fresh:
        raise OSError(errno.EDQUOT, "quota")
    assert raised.value.filename == str(tmp_path / "inner")
    assert not fresh.exists()


def test_a_refusal_of_the_unfinished_file_names_the_final_one(path):
    """Within, somebody else's writer may be as careful."""
    with pytest.raises(WriteError) as raised, replacing(path) as fresh, replacing(fresh):
        raise OSError(errno.EDQUOT, "quota")
    assert (raised.value.errno, raised.value.filename) == (errno.EDQUOT, str(path))
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failure_at_the_last_moment_leaves_the_old_file(path, monkeypatch, at):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, at, fails)
    with pytest.raises(WriteError, match="Input/output error"), replacing(path) as fresh:
        fresh.write_bytes(b"new")
    assert path.read_bytes() == OLD
    assert names(path.parent) == [path.name]


def test_nothing_written_is_an_error_and_no_empty_file(path):
    with pytest.raises(WriteError), replacing(path):
        pass
    assert path.read_bytes() == OLD


def test_the_file_and_then_its_name_are_on_the_disk_before_it_returns(path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor):
        mode = os.fstat(descriptor).st_mode
        done.append("names" if stat.S_ISDIR(mode) else f"{os.fstat(descriptor).st_size} bytes")
        sync(descriptor)

    def noted_replace(*paths):
        done.append("replaced")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with replacing(path) as fresh:
        fresh.write_bytes(b"seven..")
    assert done == ["7 bytes", "replaced", "names"]


def test_a_directory_that_is_not_there_is_made(tmp_path):
    with replacing(tmp_path / "a" / "b" / "x") as fresh:
        fresh.write_bytes(b"x")
    assert names(tmp_path / "a" / "b") == ["x"]


def test_a_directory_that_cannot_be_made_is_told(path):
    with pytest.raises(WriteError, match=r"x\.ckpt"), replacing(path / "below" / "y"):
        pytest.fail("there is no place to write to")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "x") as fresh:
            fresh.write_bytes(b"x")
        write_tensors({"x": torch.zeros(2)}, tmp_path / "y")
    finally:
        os.umask(before)
    for name in ("x", "y"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_tensors_are_written_as_torch_writes_them(path):
    write_tensors({"x": torch.arange(3.0), "y": [1, "a"]}, path)
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["x"], torch.arange(3.0))
    assert content["y"] == [1, "a"]
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("size", [1, 10, 100, 1000, 3000, 200_000])
def test_tensors_on_a_full_disk_are_refused_in_the_words_of_the_system(path, small_files, size):
    """Torch's writer has words of its own, which depend on where it stood when the disk was full."""
    with pytest.raises(WriteError, match="File too large") as raised:
        write_tensors({"x": torch.zeros(size)}, path)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == OLD
    assert names(path.parent) == [path.name]


def test_the_limit_of_this_test_is_met_by_plain_torch_in_other_words(path, small_files):
    """The test above can fail."""
    with pytest.raises(RuntimeError, match="unexpected pos"):
        torch.save({"x": torch.zeros(200_000)}, path)


def test_what_cannot_be_saved_is_the_error_that_torch_raises(path):
    with pytest.raises(AttributeError, match="local"):
        write_tensors({"x": lambda: 0}, path)
    assert path.read_bytes() == OLD


def kill_while_writing(path):
    """Have a process write and die in the middle."""
    process = os.fork()
    if process == 0:
        with replacing(path) as fresh:
            fresh.write_bytes(b"the n")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_what_a_killed_process_leaves_is_removed_and_nothing_else(path):
    directory = path.parent
    others = [
        ".x.ckpt",
        ".hidden",
        ".grok-unfinished.",
        ".grok-unfinished.x",
        ".grok-unfinished-" + 32 * "0",
        f"{unfinished(path).name}.ckpt",
    ]
    for name in others:
        (directory / name).write_bytes(b"")
    unfinished(path).mkdir()
    before = names(directory)
    kill_while_writing(path)
    assert path.read_bytes() == OLD
    assert len(names(directory)) == len(before) + 1, "it leaves something"
    remove_leftovers(directory)
    assert names(directory) == before


def test_without_a_directory_nothing_is_left_over(tmp_path):
    remove_leftovers(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()
