"""Claims in the terminal, and their figures as files."""

import io

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from grok_callbacks.files import WriteError
from grok_lightning.theory import Claim, Line
from grok_lightning.theory.table import HOW_TO_READ, check_claims


def one_and_one(seed: int = 0) -> list[Line]:
    """One and one are two.

    Statement: 1 + 1 = 2,
    always.

    Source: counting.
    """
    return [Line.equal("1 + 1", 2, 1 + 1, 0), Line.always("1 + [x] > 0", [-1, -2])]


def one_and_two(seed: int = 0) -> list[Line]:
    """One and two are four."""
    return [Line.equal("1 + 2", 4, 1 + 2, 0.5), Line.equal("2 + 2", 4, 2 + 2, 0.5)]


def told(claims, directory, statements=False, width=80):
    out = io.StringIO()
    held = check_claims(claims, directory, 0, statements, Console(file=out, width=width))
    return held, out.getvalue()


def test_lines_are_printed_and_what_fails_is_said(tmp_path):
    held, text = told([Claim(one_and_one), Claim(one_and_two)], tmp_path)
    assert not held
    assert "one_and_one: One and one are two." in text
    assert "1 + [x] > 0" in text, "no markup"
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "+", "2", "4", "3", "1", "0.5", "NO"] in rows
    assert ["2", "+", "2", "4", "4", "0", "0.5", "yes"] in rows
    assert text.rstrip().endswith("1 of 4 lines do NOT hold")


def test_the_seed_is_passed_on(tmp_path):
    seen = []

    def noted(seed=0):
        seen.append(seed)
        return [Line.needed("x", [1])]

    out = io.StringIO()
    check_claims([Claim(noted)], tmp_path, seed=5, console=Console(file=out))
    assert seen == [5]
    assert HOW_TO_READ in " ".join(out.getvalue().split()), "where there is such a line"


def test_what_holds_is_said(tmp_path):
    held, text = told([Claim(one_and_one)], tmp_path)
    assert held
    assert text.rstrip().endswith("all 2 lines hold")
    assert "counting" not in text
    assert "dropped" not in text
    assert list(tmp_path.iterdir()) == []


def test_statements_are_printed_where_asked_for(tmp_path):
    text = told([Claim(one_and_one)], tmp_path, statements=True)[1]
    assert "Statement: 1 + 1 = 2, always.\nSource: counting." in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_word_is_lost_on_a_narrow_terminal(tmp_path, width):
    long = Claim(lambda seed=0: [Line.equal("a" * 90, 1, 1, 0)])
    text = told([long], tmp_path, width=width)[1]
    assert text.count("a") >= 90
    assert "…" not in text


def test_figures_are_written(tmp_path):
    folder = tmp_path / "new" / "theory"
    text = told([Claim(one_and_one, {"two": Figure, "three": Figure})], folder, width=20)[1]
    assert sorted(path.name for path in folder.iterdir()) == ["three.png", "two.png"]
    assert str(folder / "two.png") in text, "in one piece, to be copied"


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "theory").write_text("in the way")
    out = io.StringIO()
    claims = [Claim(one_and_one, {"two": Figure}), Claim(one_and_two)]
    with pytest.raises(WriteError, match=r"two\.png"):
        check_claims(claims, tmp_path / "theory", console=Console(file=out, width=80))
    assert "1 of 4 lines do NOT hold" in out.getvalue(), "tables and verdict come first"


def test_where_there_is_no_terminal_lines_are_long(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    claim = Claim(lambda seed=0: [Line.equal("a" * 60, 1, 1, 0)])
    check_claims([claim], tmp_path)
    assert "a" * 60 in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    check_claims([claim], tmp_path)
    assert "a" * 60 not in capsys.readouterr().out
