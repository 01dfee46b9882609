"""``theory`` on the command line."""

import re
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from grok_lightning.cli import main
from grok_lightning.theory import CLAIMS, Claim, Line, command


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ended(*arguments):
    """The exit code."""
    try:
        main(["theory", *arguments])
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def complaint(capsys, *arguments):
    """The one line in which arguments are refused."""
    assert ended(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: theory: ")
    assert len(output.err.splitlines()) == 1
    return output.err


def test_a_claim_is_checked(capsys):
    assert ended("lemma_d2", "theorem_d1") == 0
    output = capsys.readouterr().out
    assert output.index("theorem_d1:") < output.index("lemma_d2:"), "in the order of the table, as without names"
    assert "Hypotheses:" in output
    assert "lemma_d3:" not in output
    assert re.search(r"all \d+ lines hold$", output.rstrip())


def test_the_help_names_every_claim(capsys):
    assert ended("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {claim.name}\n" in text and claim.title in text for claim in CLAIMS)
    assert "usage: python -m grok_lightning theory" in text
    assert max(map(len, text.splitlines())) <= 120


def test_another_seed_draws_others(capsys, monkeypatch):
    def drawn(seed: int = 0) -> list[Line]:
        """Drawn."""
        return [Line.equal("seed", seed, seed, 0)]

    monkeypatch.setattr(command, "CLAIMS", (Claim(drawn),))
    assert ended("--seed", "31") == 0
    assert re.search(r"seed +31 +31 ", capsys.readouterr().out)


def test_a_claim_that_does_not_hold_is_an_exit_code(capsys, monkeypatch):
    def two_is_three(seed: int = 0) -> list[Line]:
        """Two is three."""
        return [Line.equal("2", 3, 2, 0)]

    monkeypatch.setattr(command, "CLAIMS", (*CLAIMS, Claim(two_is_three)))
    assert ended("two_is_three") == 1
    assert "1 of 1 lines do NOT hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lema_d2"], "there is no claim 'lema_d2'; did you mean lemma_d2?"),
        (["D.4"], "there is no claim 'D.4'; did you mean theorem_d4?"),
        (["Proposition"], "did you mean proposition_1 or proposition_2 or proposition_3?"),
        (["xyz"], "expected some of proposition_1, "),
        (["lemma_d2", "..."], "expected some of proposition_1, "),
        (["--all"], "there is no option '--all'"),
        (["lemma_d2", "--sead", "1"], "there is no option '--sead'; did you mean --seed?"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
    ],
)
def test_what_there_is_not_is_refused(capsys, arguments, says):
    assert says in complaint(capsys, *arguments)


def test_figures_go_where_they_are_wanted(capsys, monkeypatch, tmp_path):
    def nothing(seed: int = 0) -> list[Line]:
        """Nothing."""
        return []

    monkeypatch.setattr(command, "CLAIMS", (Claim(nothing, {"empty": Figure}),))
    assert ended("--output", str(tmp_path / "mine")) == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["empty.png"]
    assert not (tmp_path / "runs").exists()


def test_figures_that_cannot_be_written_are_told(capsys, monkeypatch, tmp_path):
    def nothing(seed: int = 0) -> list[Line]:
        """Nothing."""
        return []

    monkeypatch.setattr(command, "CLAIMS", (Claim(nothing, {"empty": Figure}),))
    (tmp_path / "runs").write_text("in the way")
    assert "cannot write runs/theory/empty.png: " in complaint(capsys)


def test_a_pipe_that_knows_no_greek_gets_question_marks(tmp_path):
    code = "from grok_lightning.cli import main; main(['theory', 'lemma_d3'])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        encoding="cp1252",
        env={"PYTHONIOENCODING": "cp1252", "PATH": "", "MPLCONFIGDIR": str(tmp_path)},
        check=True,
    )
    assert "lines hold" in done.stdout
