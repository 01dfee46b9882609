"""What a line holds for, and what every claim has to say of itself."""

import math
import re

import pytest

from grok_lightning.theory import CLAIMS, Claim, Line


@pytest.mark.parametrize(
    ("predicted", "computed", "allowed", "holds"),
    [
        (1.0, 1.0, 0.0, True),
        (1.0, 1.5, 0.5, True),
        (1.0, 1.5, 0.49, False),
        (1.5, 1.0, 0.49, False),
        (1.0, math.nan, 9.0, False),
        (math.nan, 1.0, 9.0, False),
        (0.0, math.inf, 9.0, False),
        (math.inf, math.inf, 9.0, False),  # nothing was compared
    ],
)
def test_two_numbers_are_compared(predicted, computed, allowed, holds):
    line = Line.equal("x", predicted, computed, allowed)
    assert line.holds is holds
    assert Line.same("x", [0.0, predicted], [0.0, computed], allowed).holds is holds


def test_of_many_pairs_the_furthest_is_shown():
    line = Line.same("x", [[1, 2], [3, 4]], [[1, 2.5], [2, 4]], 1.0)
    assert (line.predicted, line.computed, line.error, line.holds) == (3, 2, 1, True)


def test_a_pair_with_nan_is_the_furthest():
    line = Line.same("x", [1, math.nan, 5], [9, 1, 5], 100)
    assert math.isnan(line.predicted)
    assert not line.holds


@pytest.mark.parametrize(("left", "right"), [([1, 2], [1]), ([], []), ([[1, 2]], [1, 2])])
def test_numbers_that_do_not_pair_are_refused(left, right):
    with pytest.raises(ValueError, match="x: expected as many numbers"):
        Line.same("x", left, right, 1.0)


def test_an_inequality_holds_where_no_draw_violates_it():
    line = Line.always("x", [-3, -0.5, 0])
    assert (line.predicted, line.computed, line.error, line.holds) == ("always", "in 3 of 3", 0, True)
    line = Line.always("x", [-3, 0.5, 0.25])
    assert (line.computed, line.error, line.holds) == ("in 1 of 3", 0.5, False)
    assert Line.always("x", [-3, 1e-16], allowed=1e-15).holds


def test_an_inequality_does_not_hold_where_a_draw_is_nan():
    line = Line.always("x", [-1, math.nan])
    assert line.computed == "in 1 of 2"
    assert not line.holds


def test_a_hypothesis_is_needed_where_the_statement_fails_without_it():
    line = Line.needed("a > 0", [-1, 0.5, 0])
    assert (line.what, line.predicted, line.computed) == ("without: a > 0", "not always", "in 2 of 3")
    assert line.holds
    assert not Line.needed("a > 0", [-1, 0, -2]).holds
    assert not Line.needed("a > 0", [1e-16], allowed=1e-15).holds


@pytest.mark.parametrize("excess", [[], [1, math.nan]])
def test_a_hypothesis_is_not_shown_to_be_needed_by_what_could_not_be_computed(excess):
    with pytest.raises(ValueError, match="a > 0: expected draws that are numbers"):
        Line.needed("a > 0", excess)


def test_no_draws_show_nothing():
    with pytest.raises(ValueError, match="expected at least one draw"):
        Line.always("x", [])


def test_a_claim_is_told_by_its_function():
    def a_claim(seed: int = 0) -> list[Line]:
        """All is well.

        Statement: all is.

        Args:
            seed: Of nothing.

        """
        return [Line.equal("x", seed, seed, 0)]

    claim = Claim(a_claim)
    assert (claim.name, claim.title, claim.statement) == (
        "a_claim",
        "All is well.",
        "All is well.\n\nStatement: all is.",
    )


def test_names_of_claims_and_figures_are_their_own():
    names = [claim.name for claim in CLAIMS]
    figures = [name for claim in CLAIMS for name in claim.figures]
    assert len(set(names)) == len(names)
    assert len(set(figures)) == len(figures)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in names + figures)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_has_a_statement_hypotheses_and_a_source(claim):
    parts = [paragraph.partition(":")[0] for paragraph in claim.statement.split("\n\n")[1:]]
    assert {"Statement", "Hypotheses", "Source"} <= set(parts)
    assert claim.title.endswith(".")
    assert "\n" not in claim.title
    assert re.search(r"arXiv \d{4}\.\d{5}", claim.statement)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
@pytest.mark.parametrize("seed", [0, 11])
def test_every_line_of_a_claim_holds(claim, seed):
    lines = claim.check(seed)
    assert lines
    assert [line for line in lines if not line.holds] == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_shows_what_it_is_without_a_hypothesis(claim):
    assert any(line.is_without for line in claim.check(0))
