import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from matplotlib.colors import to_hex

from grok_lightning.theory import efficiency
from grok_lightning.theory.claims import Claim, Line
from grok_lightning.theory.effective_loss import EffectiveLoss, minimise, optimum
from grok_lightning.theory.efficiency import (
    draw_optimal_weights,
    lemma_d2,
    lemma_d3,
    lemma_d3_reach,
    theorem_d1,
    theorem_d4,
)

CLAIMS = (theorem_d1, lemma_d2, lemma_d3, theorem_d4)
claims = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)


@pytest.fixture
def few(monkeypatch):
    """As many losses as show a planted error."""
    monkeypatch.setattr(efficiency, "LOSSES", 4)


def wrong(lines):
    return [line.what for line in lines if not line.holds]


def by_name(lines, text):
    found = [line for line in lines if text in line.what]
    assert found, text
    return found


@claims
def test_a_claim_is_that_of_its_seed(claim, few):
    assert claim(3) == claim(3)
    assert wrong(claim(3)) == []


@claims
def test_a_claim_says_what_it_is(claim):
    statement = Claim(claim).statement
    assert [part for part in ("Statement:", "Hypotheses:", "Source: Varma") if part not in statement] == []


@claims
def test_lines_are_named_apart(claim, few):
    names = [line.what for line in claim(0)]
    assert len(names) == len(set(names))


# Theorem D.1


def entropy(logits, right, scale):
    """Mean cross-entropy of scaled logits, in plain arithmetic."""
    losses = []
    for row, label in zip(logits, right, strict=True):
        odds = [math.exp(scale * (other - row[label])) for i, other in enumerate(row) if i != label]
        losses.append(math.log1p(sum(odds)))
    return sum(losses) / len(losses)


def classifier(seed, rows=12, labels=5):
    logits = np.random.default_rng(seed).normal(0, 3, (rows, labels))
    return logits.tolist(), logits.argmax(1).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_scaling_up_what_is_right_lowers_cross_entropy(seed):
    logits, right = classifier(seed)
    losses = [entropy(logits, right, c) for c in (0.5, 1, 1.001, 1.5, 4)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    # That they are right, kept, would let the line of the dropped hypothesis fail.
    assert not Line.needed("they are right", [after - losses[1] for after in losses[2:]]).holds


def test_scaling_up_one_wrong_row_may_raise_it():
    logits, right = classifier(0)
    right[0] = (right[0] + 1) % 5
    assert entropy(logits, right, 4) > entropy(logits, right, 1)


def test_the_loss_of_margins_is_cross_entropy():
    logits, right = classifier(1)
    first = np.array([[row[label], *(o for i, o in enumerate(row) if i != label)] for row, label in zip(logits, right)])  # noqa: B905
    margins = efficiency._margins(first)[None]
    for scale in (0.3, 1.0, 2.5):
        found = float(efficiency._cross_entropy(margins, np.array([scale]))[0])
        assert found == pytest.approx(entropy(logits, right, scale), rel=1e-13)
        difference = (entropy(logits, right, scale + 1e-5) - entropy(logits, right, scale - 1e-5)) / 2e-5
        assert float(efficiency._slope_in_scale(margins, np.array([scale]))[0]) == pytest.approx(difference, rel=1e-6)


def test_theorem_d1_sees_a_wrong_loss_and_a_wrong_slope(monkeypatch):
    loss, slope = efficiency._cross_entropy, efficiency._slope_in_scale
    with monkeypatch.context() as patch:
        patch.setattr(efficiency, "_cross_entropy", lambda margins, scale: loss(margins, 1 / scale))
        assert "L(c h) < L(h)" in wrong(theorem_d1())
    with monkeypatch.context() as patch:
        patch.setattr(efficiency, "_slope_in_scale", lambda margins, scale: slope(margins, scale) * (1 + 1e-9))
        assert wrong(theorem_d1()) == ["dL(c h)/dc, over L(c h)"]
    with monkeypatch.context() as patch:
        patch.setattr(efficiency, "_cross_entropy", lambda margins, scale: loss(margins, 0 * scale + 1))
        missed = {"L(c h) < L(h)", "L(c h) < L(h) where another label ties on every row"}
        assert missed < set(wrong(theorem_d1()))  # equality is a violation


# Lemma D.2


@pytest.mark.parametrize("r", [Fraction(1, 4), Fraction(1, 2), Fraction(1)], ids=str)
@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 2), (1e-9, 1), (1, 1), (3, 1e9)])
def test_powers_below_one_are_subadditive(a, b, r):
    excess = (a + b) ** float(r) - a ** float(r) - b ** float(r)
    assert excess <= 1e-11 * (1 + b)
    assert not Line.needed("0 < r <= 1", [excess], 1e-11 * (1 + b)).holds


@pytest.mark.parametrize(("a", "b", "r"), [(1, 1, 2), (-4, 9, 0.5)])
def test_without_its_hypotheses_powers_are_not(a, b, r):
    left, *right = (math.copysign(abs(x) ** r, x) for x in (a + b, a, b))
    assert Line.needed("r <= 1, a >= 0", [left - sum(right)]).holds


# Lemma D.3


def exact_excess(x, r, c, epsilon):
    """ε (r x^(r-1) - c) - (x^r - (x - ε)^r) for whole r, without rounding; below 0 where the lemma holds."""
    x, c, epsilon = Fraction(x), Fraction(c), Fraction(epsilon)
    return epsilon * (r * x ** (r - 1) - c) - (x**r - (x - epsilon) ** r)


POINTS = [(1.0, 1.0), (1.0, 1e-9), (0.25, 0.125), (3.0, 1e-3), (7.0, 1e4), (1e-3, 1e-8)]


@pytest.mark.parametrize("r", [-3, -1, 0, 1, 2, 3, 5])
@pytest.mark.parametrize(("x", "c"), POINTS)
def test_lemma_d3_holds_as_far_as_it_reaches(x, c, r):
    reach = float(lemma_d3_reach(x, r, c))
    assert 0 < reach <= x
    epsilons = [reach * k for k in (1e-9, 1e-3, 0.1, 0.5, 0.9, 0.999)]
    excess = [exact_excess(x, r, c, epsilon) for epsilon in epsilons]
    assert all(value < 0 for value in excess)
    # c > 0 and ε < δ, kept, would let the lines of the dropped hypotheses fail.
    assert not Line.needed("c > 0, ε < δ", [float(value) for value in excess]).holds


def test_lemma_d3_needs_c_above_zero_and_small_epsilon():
    assert all(exact_excess(1, 2, 0, epsilon) > 0 for epsilon in (1e-9, 1e-3, 0.5))
    reach = float(lemma_d3_reach(1, 2, 0.5))
    assert reach == pytest.approx(0.25, rel=1e-14)
    assert exact_excess(1, 2, 0.5, 0.9) > 0


def test_lemma_d3_sees_a_printed_form_that_holds(monkeypatch):
    """As if powers fell faster than they do."""
    fall = efficiency._fall_of_power
    monkeypatch.setattr(efficiency, "_fall_of_power", lambda x, epsilon, r: 5 * fall(x, epsilon, r))
    assert [what for what in wrong(lemma_d3()) if what.startswith("printed, x = 1")]


@pytest.mark.parametrize("power", range(12))
def test_the_printed_lemma_d3_fails_for_every_reach(power):
    """x = 1, r = 2, c = 1: the right side is δ, whatever ε is."""
    delta = Fraction(1, 10**power)
    epsilon = delta / 4
    assert 1 - (1 - epsilon) ** 2 < delta * (2 - 1)


def test_the_reach_is_its_formula_where_that_does_not_cancel():
    x, r = np.array([0.5, 1.0, 2.0])[:, None], np.array([1.5, 2.0, 4.0, -2.0])
    c = 0.5 * np.abs(r) * x ** (r - 1)
    assert lemma_d3_reach(x, r, c) == pytest.approx(x - (x ** (r - 1) - c / r) ** (1 / (r - 1)), rel=1e-13)


def test_the_reach_for_small_c():
    """To first order c / (r (r - 1) x^(r - 2)), which the plain formula loses in rounding."""
    for r in (1.5, 2.0, 4.0):
        for c in (1e-12, 1e-20):
            assert float(lemma_d3_reach(2.0, r, c)) == pytest.approx(c / (r * (r - 1) * 2.0 ** (r - 2)), rel=1e-10)


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0, 1 + 1e-12, 2.0])
def test_the_reach_is_x_where_nothing_stops_it(r):
    assert float(lemma_d3_reach(0.7, r, 10.0)) == pytest.approx(0.7, rel=1e-13)


def test_the_reach_has_the_shape_of_its_arguments():
    assert lemma_d3_reach(np.ones((3, 1)), np.ones(4), 1.0).shape == (3, 4)
    assert lemma_d3_reach(1, 2, 1).shape == ()


@pytest.mark.parametrize(
    ("x", "r", "c", "message"),
    [
        (0, 2, 1, "expected x above 0, got 0.0"),
        (1, 2, 0, "expected c above 0, got 0.0"),
        (1, 2, [1, -3], "expected c above 0, got -3.0"),
        (math.nan, 2, 1, "expected x above 0, got nan"),
        (1, math.inf, 1, "expected finite"),
        (math.inf, 2, 1, "expected finite"),
    ],
)
def test_what_has_no_reach_is_refused(x, r, c, message):
    with pytest.raises(ValueError, match=message):
        lemma_d3_reach(x, r, c)


def test_lemma_d3_sees_a_reach_too_far(monkeypatch):
    monkeypatch.setattr(efficiency, "lemma_d3_reach", lambda x, r, c: 0.999 * x)
    assert "x^r - (x - ε)^r > ε (r x^(r-1) - c) for ε < δ" in wrong(lemma_d3())


def test_lemma_d3_keeps_its_digits_for_tiny_epsilon():
    x, epsilon, r = np.array([1.0]), np.array([1e-12]), np.array([3.0])
    exact = 1 - (1 - Fraction(1e-12)) ** 3
    assert float(efficiency._fall_of_power(x, epsilon, r)[0]) == pytest.approx(float(exact), rel=1e-14)


# Theorem D.4


def scaled_exponent(factor):
    """Shares of the weight as a wrong power law would have them."""

    def shares(loss):
        each = -factor * loss.order * loss.kappa / (loss.order - loss.kappa) * np.log(loss.norms)
        return np.exp(each - np.logaddexp.reduce(each))

    return shares


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, 2.0])
def test_theorem_d4_sees_a_wrong_exponent(few, monkeypatch, factor):
    for module in ("effective_loss", "efficiency"):
        monkeypatch.setattr(f"grok_lightning.theory.{module}.balanced_shares", scaled_exponent(factor))
    found = wrong(theorem_d4())
    assert "κ <= 0.9 q: weights where a search ends, over those of the law" in found
    assert "gain over price of each weight: all κ < q, the law; κ > q, the saddle" in found


def test_theorem_d4_sees_a_wrong_total(few, monkeypatch):
    monkeypatch.setattr(efficiency, "optimum", lambda loss: 1.001 * optimum(loss))
    found = wrong(theorem_d4())
    assert "gain over price of each weight: all κ < q, the law; κ > q, the saddle" in found
    assert "κ <= 0.9 q or κ >= q: loss where a search ends, over that of the law" in found


def test_theorem_d4_sees_a_search_that_ends_in_a_local_minimum(few, monkeypatch):
    """At w = 0, and on a circuit that is not the cheapest: what one descent may find for κ > q."""

    def elsewhere(loss, seed=0):
        if loss.kappa <= loss.order:
            return minimise(loss, seed)
        worst = int(np.argmax(loss.norms))
        return optimum(replace(loss, norms=(loss.norms[worst],), logits=())) * np.eye(loss.n_circuits)[worst]

    monkeypatch.setattr(efficiency, "minimise", elsewhere)
    found = wrong(theorem_d4())
    assert "κ <= 0.9 q or κ >= q: loss where a search ends, over that of the law" in found
    assert "κ >= q: share of the weight not on the least norm where a search ends" in found


def test_theorem_d4_sees_a_wrong_winner(few, monkeypatch):
    monkeypatch.setattr(efficiency, "_least", lambda loss: int(np.argmax(loss.norms)))
    found = wrong(theorem_d4())
    assert "of one total, no split costs less than the law's" in found
    assert "κ >= q: share of the weight not on the least norm where a search ends" in found


def test_theorem_d4_sees_a_minimum_called_a_saddle(few, monkeypatch):
    """The circuits share as for κ < q: where nothing can be gained by an exchange."""

    def shared(loss):
        return optimum(replace(loss, kappa=0.5 * loss.order))

    monkeypatch.setattr(efficiency, "interior_stationary_point", shared)
    assert "gain over price of each weight: all κ < q, the law; κ > q, the saddle" in wrong(theorem_d4())


def test_lines_of_dropped_logits_fail_where_they_are_kept(monkeypatch):
    def same(*arguments, logits=(), **others):
        return EffectiveLoss(*arguments, **others)

    kept = efficiency._lines_without_equal_logits(np.random.default_rng(0), 0)
    assert len(kept) == 2
    assert wrong(kept) == []
    monkeypatch.setattr(efficiency, "EffectiveLoss", same)
    assert len(wrong(efficiency._lines_without_equal_logits(np.random.default_rng(0), 0))) == 2


def drawn(side, seed=0):
    generator = np.random.default_rng(seed)
    return [efficiency._drawn(generator, side) for _ in range(5)]


def test_lines_of_swapped_laws_fail_where_each_law_is_on_its_own_side(monkeypatch):
    below, above = drawn(-1), drawn(1)

    def found(shared, alone):
        return wrong(efficiency._lines_without(np.random.default_rng(0), shared, alone, 0))

    assert found(below, above) == []
    assert found(above, above) == ["without: κ >= q (below q the least norm alone costs more than the power law)"]
    monkeypatch.setattr(efficiency, "interior_stationary_point", optimum)
    assert found(below, below) == ["without: κ < q (above q the power law costs more than one circuit alone)"]


def test_the_line_of_local_minima_fails_for_the_global_one():
    loss = EffectiveLoss((1.0, 1.5), 3, 0.005, 113)
    assert efficiency._local_minimum_elsewhere(np.random.default_rng(0)) == 1
    assert not Line.needed("it is global", efficiency._others(loss, optimum(loss)), efficiency.SHARE).holds


def test_the_line_of_other_splits_fails_with_decay():
    assert min(efficiency._off_law_for_no_more(0, np.random.default_rng(0))) > 0
    kept = efficiency._off_law_for_no_more(0.005, np.random.default_rng(0))
    assert not Line.needed("α > 0", kept, efficiency.SHARE).holds


@pytest.mark.parametrize("computed", [[1.0, 2.1], [1.3, 2.0], [1.0, math.nan]])
def test_each_pair_has_its_own_allowance(computed):
    predicted, allowed = np.array([1.0, 2.0]), np.array([0.25, 0.0625])
    assert not efficiency._tightest("x", predicted, np.array(computed), allowed).holds
    assert efficiency._tightest("x", predicted, np.array([1.2, 2.0]), allowed).holds


def test_the_line_of_no_decay_fails_with_decay():
    assert efficiency._falls_beyond(0, np.random.default_rng(0)) > 0.5
    kept = efficiency._falls_beyond(0.005, np.random.default_rng(0))
    assert not Line.needed("α > 0", kept, efficiency.ROUNDING).holds


@pytest.mark.parametrize("side", [-2, -1, 0, 1])
def test_both_sides_are_drawn(side):
    losses = drawn(side)
    assert all(np.sign(loss.kappa - loss.order) == np.sign(side) for loss in losses)
    if side < 0:
        assert all((loss.kappa < 0.9 * loss.order) == (side == -1) for loss in losses)
    assert len({loss.norms for loss in losses}) == len(losses)


def test_what_rounding_hides_is_a_change_that_the_loss_does_not_show():
    """Seen at many times the distance: the change of the loss grows as its square, from rounding on."""
    for loss in drawn(-1):
        known = optimum(loss)
        for i, reach in enumerate(efficiency._unseen(loss, known)):
            factor = 1e4  # so far that the change can be seen, and the curvature is still the same
            if factor * reach < 0.01 * known[i]:
                moved = known.copy()
                moved[i] += factor * reach
                change = float(loss.total(moved) / loss.total(known)) - 1
                assert change >= 0.9 * factor**2 * efficiency.ROUNDING


# The figure


@pytest.fixture(scope="module")
def figure():
    return draw_optimal_weights()


def test_dots_lie_on_the_lines_of_the_law(figure):
    left = figure.axes[0]
    lines = {line.get_label(): line for line in left.get_lines()}
    for kappa in ("0.5", "1", "1.5"):
        law, search = lines[f"law κ = {kappa}"], lines[f"search κ = {kappa}"]
        exponent = -2 * float(kappa) / (2 - float(kappa))
        norms, weights = search.get_xdata(), search.get_ydata()
        assert np.polyfit(np.log(law.get_xdata()), np.log(law.get_ydata()), 1)[0] == pytest.approx(exponent)
        assert weights / weights[0] == pytest.approx((norms / norms[0]) ** exponent, rel=1e-5)
        assert to_hex(law.get_color()) == to_hex(search.get_color())
    assert left.get_xscale() == left.get_yscale() == "log"


def test_from_two_on_one_circuit_has_all(figure):
    right = figure.axes[1]
    shares = {line.get_label(): line for line in right.get_lines()}
    total = 0
    for norm in ("1", "1.25", "1.6", "2"):
        for label in (f"P = {norm}", f"_search P = {norm}"):
            kappa, share = shares[label].get_xdata(), shares[label].get_ydata()
            assert (share[kappa >= 2] == (norm == "1")).all()
            assert (share[kappa < 1.5] > 0).all()
        total = total + share
    assert total == pytest.approx(1)


def test_colours_stand_for_kappa_alone(figure):
    used = [{to_hex(line.get_color()) for line in axes.get_lines()} for axes in figure.axes]
    # The line at κ = 2 is no series, and at the right alone.
    assert not used[0] & used[1]
    assert all(len({colour[1:3], colour[3:5], colour[5:]}) == 1 for colour in used[1])
    assert len({line.get_marker() for line in figure.axes[1].get_legend().get_lines()}) == 4


@pytest.mark.parametrize(("value", "words"), [(1.6e-8, "2 · 10⁻⁸"), (9.7e-13, "1 · 10⁻¹²"), (3.0, "3 · 10⁰")])
def test_a_tiny_number_is_a_power_of_ten(value, words):
    assert efficiency._in_powers(value) == words


def test_the_caption_says_what_was_found(figure):
    caption = " ".join(figure.get_supxlabel().split())
    assert "Slopes of the dots: −0.667 at κ = 0.5, −2 at κ = 1 and −6 at κ = 1.5" in caption
    assert "least share in any search: 1)" in caption
    assert re.search(r"by more than [1-9] · 10⁻([⁶-⁹]|¹[⁰-⁹]) of its height", caption)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "κ = 0.5: slope −0.667",
        "κ = 1: slope −2",
        "κ = 1.5: slope −6",
        "law",
        "search",
    ]


def test_the_caption_follows_what_was_found(monkeypatch):
    monkeypatch.setattr(
        efficiency, "minimise", lambda loss: optimum(replace(loss, kappa=1.0)) if loss.kappa < 2 else optimum(loss)
    )
    caption = " ".join(draw_optimal_weights().get_supxlabel().split())
    assert "Slopes of the dots: −2 at κ = 0.5, −2 at κ = 1 and −2 at κ = 1.5" in caption
