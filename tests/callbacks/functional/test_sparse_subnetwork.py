import math
from itertools import product

import pytest
import torch

from grok_callbacks.functional import (
    in_top,
    is_right,
    linear_search,
    predictions,
    prefix_search,
    rank_neurons,
)
from grok_callbacks.functional import sparse_subnetwork as module

NAN = math.nan


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The definition, number by number: every size is a network of its own.


def predict(logits):
    """What one row's logits predict: NaN, a sign, or the first largest."""
    if any(math.isnan(logit) for logit in logits):
        return NAN
    if len(logits) == 1:
        return (logits[0] > 0) - (logits[0] < 0)
    return logits.index(max(logits))


def predict_with(kept, activations, readout, rest):
    """Predictions, row by row, of the network in which only these neurons are left."""
    return [
        predict(
            [constant + sum(row[j] * weight[j] for j in kept) for constant, weight in zip(rests, readout, strict=True)]
        )
        for row, rests in zip(activations, rest, strict=True)
    ]


def n_right(predicted, targets, n_outputs):
    if n_outputs == 1:
        targets = [1 if target > 0 else -1 for target in targets]
    return sum(p == t for p, t in zip(predicted, targets, strict=True))


def slow_sizes(activations, readout, rest, order, targets):
    """Both sizes of one network, from lists."""
    at = [predict_with(order[:k], activations, readout, rest) for k in range(len(order) + 1)]
    if any(math.isnan(p) for p in at[-1]):
        return NAN, NAN
    right = [n_right(predicted, targets, len(readout)) for predicted in at]
    agrees = [predicted == at[-1] for predicted in at]
    return agrees.index(True), right.index(right[-1])


def slow(activations, readout, rest, order, targets):
    """Both sizes of every network, ``(2, ...)``."""
    lead = order.shape[:-1]
    inner = [t.reshape(-1, *t.shape[len(lead) :]).tolist() for t in (activations, readout, rest, order, targets)]
    found = [slow_sizes(*network) for network in zip(*inner, strict=True)]
    return torch.tensor(found, dtype=torch.float64).reshape(*lead, 2).movedim(-1, 0)


def problem(lead=(), rows=9, neurons=6, outputs=1, seed=0, rest=1.0):
    """A random network and labels."""
    generator = torch.Generator().manual_seed(seed)
    activations = draw(*lead, rows, neurons, seed=seed).relu()
    readout = draw(*lead, outputs, neurons, seed=seed + 1)
    constant = rest * draw(*lead, rows, outputs, seed=seed + 2)
    order = draw(*lead, neurons, seed=seed + 3).argsort(dim=-1)
    targets = torch.randint(max(2, outputs), (*lead, rows), generator=generator)
    return activations, readout, constant, order, targets


def check(*arguments):
    found = prefix_search(*arguments)
    expected = slow(*arguments)
    assert found.by_predictions.dtype == found.by_accuracy.dtype == torch.float64
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=0, equal_nan=True)
    return expected


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_sizes_are_those_of_one_network_after_the_other(lead, outputs):
    check(*problem(lead, outputs=outputs))


@pytest.mark.parametrize(("rows", "neurons", "outputs", "rest"), [*product([1, 2, 30], [1, 2, 12], [1, 3], [0.0, 1.0])])
def test_sizes_of_small_and_large_networks(rows, neurons, outputs, rest):
    for seed in range(6):
        check(*problem((2,), rows, neurons, outputs, 10 * seed, rest))


def test_the_problems_have_sizes_of_all_kinds():
    """The comparisons above could otherwise be of nothing but the largest size."""
    sizes = torch.cat([check(*problem((4,), 3, 5, 1, seed)) for seed in range(40)], dim=1)
    for by_rule in sizes:
        assert set(by_rule.tolist()) == {0, 1, 2, 3, 4, 5}
    assert not torch.equal(*sizes)


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("outputs", [1, 3])
def test_rows_may_be_looked_at_in_pieces(monkeypatch, rows_at_once, outputs):
    pieces = []

    def noted(logits):
        pieces.append(len(logits))
        return predict_all(logits)

    predict_all = module._predictions

    monkeypatch.setattr(module, "AT_ONCE", rows_at_once * (6 + 1) * outputs)
    monkeypatch.setattr(module, "_predictions", noted)
    check(*problem((2,), rows=8, outputs=outputs))
    assert sum(pieces) == 2 * 8
    assert max(pieces) == min(rows_at_once, 8)


def test_one_row_is_looked_at_even_if_it_is_too_large(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    check(*problem((2,), rows=8))


def test_a_row_that_is_forgotten_would_be_seen():
    """The last row alone needs the last neuron."""
    activations, readout, rest, order, targets = with_curves([[1, 1, 1, 1], [1, 1, 1, 1], [1, -1, -1, 1]])
    assert prefix_search(activations, readout, rest, order, targets).by_predictions == 0
    activations[2, 0], rest[2] = 2, -1
    activations[2, 1:] = torch.tensor([-2, 2])
    check(activations, readout, rest, order, targets)
    rest[2], activations[2] = -1, torch.tensor([0.0, 0.0, 2.0])
    assert prefix_search(activations, readout, rest, order, targets).by_predictions == 3
    assert prefix_search(activations[:2], readout, rest[:2], order, targets[:2]).by_predictions == 0


# Curves that go up and down, which no bisection sees.


def with_curves(curves, targets=None):
    """A network with one output whose logit with the first k neurons is ``curves[row][k]``."""
    curves = torch.tensor(curves, dtype=torch.float64)
    rows, sizes = curves.shape
    targets = torch.ones(rows) if targets is None else torch.tensor(targets)
    ones = torch.ones(1, sizes - 1, dtype=torch.float64)
    return curves.diff(dim=1), ones, curves[:, :1], torch.arange(sizes - 1), targets


def released_bisection(score, full, n_neurons):
    """The search of the paper's released code, by its description; infinite where it finds nothing."""
    left, right, before, visited = 1, n_neurons, None, []
    while (k := (left + right) // 2) != before:
        before = k
        if score[k] == full:
            visited.append(k)
        if score[k] < full:
            left = k
        else:
            right = k + 1
    return min(visited, default=math.inf)


def accuracies(curves, targets):
    return [
        sum((row[k] > 0) == (t > 0) and row[k] != 0 for row, t in zip(curves, targets, strict=True)) / len(targets)
        for k in range(len(curves[0]))
    ]


@pytest.mark.parametrize(
    ("curve", "bisection", "ours"),
    [
        ([-1, 1, -1, 1], math.inf, 1),  # finds nothing
        ([-1, 1, -1, -1, -1, 1, 1, 1, 1], 5, 1),  # finds one that is too large
        ([-1, -1, -1, -1, 1, -1, -1, -1, 1], 4, 4),  # is lucky
        ([1, -1, -1, -1, 1], math.inf, 0),  # no neurons at all
        ([-1, -1, -1, 1], math.inf, 3),  # all of them: never tried
        ([-1, -1, -1, 1, 1, 1, 1, 1, 1], 3, 3),  # rises steadily
    ],
)
def test_bisection_is_wrong_where_agreement_goes_up_and_down(curve, bisection, ours):
    for scale in (1.0, 0.125):
        curves = [[scale * value for value in curve]] * 2
        score = accuracies(curves, [1, 1])
        assert released_bisection(score, score[-1], len(curve) - 1) == bisection
        sizes = prefix_search(*with_curves(curves))
        assert (sizes.by_predictions, sizes.by_accuracy) == (ours, ours)


def test_bisection_is_wrong_where_a_part_is_better_than_the_whole():
    curves = [[-1, 1, 1, 1, 1, 1, 1], [-1, -1, 1, 1, 1, 1, -1], [1, 1, 1, 1, 1, 1, 1]]
    targets = [1, 1, 1]
    score = accuracies(curves, targets)
    assert [round(3 * s) for s in score] == [1, 2, 3, 3, 3, 3, 2]
    # It goes below every size that is too good, and stops at 2: a size of 1 is not among the candidates.
    assert released_bisection(score, score[-1], 6) == math.inf
    assert prefix_search(*with_curves(curves, targets)).by_accuracy == 1


def test_bisection_is_wrong_on_random_curves_and_ours_never_is():
    wrong = {"too large": 0, "none": 0}
    for seed in range(60):
        arguments = problem((), rows=6, neurons=9, seed=seed)
        _, expected = check(*arguments).tolist()
        activations, readout, rest, order, targets = (t.tolist() for t in arguments)
        at = [predict_with(order[:k], activations, readout, rest) for k in range(10)]
        score = [n_right(predicted, targets, 1) for predicted in at]
        found = released_bisection(score, score[-1], 9)
        assert found >= expected
        wrong["none"] += math.isinf(found)
        wrong["too large"] += math.inf > found > expected
    assert min(wrong.values()) >= 5, wrong


# Single cases with known answers.


def test_a_network_that_its_constant_decides_needs_no_neurons():
    activations, readout, _, order, targets = problem((2,), outputs=3)
    rest = torch.zeros(2, 9, 3, dtype=torch.float64)
    rest[..., 1] = 100
    assert prefix_search(activations, readout, rest, order, targets).by_predictions.tolist() == [0, 0]


def test_the_two_rules_differ_where_as_many_but_other_rows_are_right():
    curves, targets = [[1, 1, -1], [-1, 1, 1]], [1, 1]
    sizes = prefix_search(*with_curves(curves, targets))
    assert (sizes.by_predictions, sizes.by_accuracy) == (2, 0)


def test_a_logit_of_zero_agrees_with_nothing_but_zero_and_is_never_right():
    # No constant: without neurons the logit is 0.
    sizes = prefix_search(*with_curves([[0, 1, 1], [0, -1, -1]], [1, -1]))
    assert (sizes.by_predictions, sizes.by_accuracy) == (1, 1)
    # With all neurons it is 0 again: neither +1 nor −1 agrees with it.
    sizes = prefix_search(*with_curves([[1, -1, 0]], [1]))
    assert sizes.by_predictions == 2
    assert prefix_search(*with_curves([[0, -1, 0]], [1])).by_predictions == 0
    # All is wrong, 0 and −1 alike: no neurons are as good as all.
    assert prefix_search(*with_curves([[0, 1, -1]], [1])).by_accuracy == 0
    # Labels of 0 stand for −1, and 0 is not −1.
    assert prefix_search(*with_curves([[0, 0, -1]], [0])).by_accuracy == 2
    assert prefix_search(*with_curves([[-1, 0, -1]], [0])).by_accuracy == 0


def test_negative_zero_is_zero():
    for n in (1, 40):
        assert predictions(torch.full((n, 1), -0.0)).tolist() == [0] * n


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("where", ["activations", "readout", "rest"])
def test_a_network_with_nan_logits_has_no_size_and_the_others_have_theirs(outputs, where):
    arguments = dict(
        zip(("activations", "readout", "rest", "order", "targets"), problem((3,), outputs=outputs), strict=True)
    )
    arguments[where][1, 0, 0] = NAN
    expected = check(*arguments.values())
    assert expected.isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("outputs", [1, 2])
def test_nan_in_the_last_neuron_on_one_row_is_enough(outputs):
    activations, readout, rest, order, targets = problem((), outputs=outputs)
    activations[4, order[-1]] = NAN
    assert check(activations, readout, rest, order, targets).isnan().all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_infinite_logits_of_both_signs_are_nan(outputs):
    activations, readout, rest, order, targets = problem((), outputs=outputs)
    activations[0, 0], rest[0, 0] = math.inf, -math.inf
    readout[:, 0] = 1
    assert torch.stack(prefix_search(activations, readout, rest, order, targets)).isnan().all()


def test_one_infinite_logit_predicts_like_a_large_one():
    sizes = prefix_search(*with_curves([[-1.0, -1.0, 1.0, 2.0]]))
    activations, readout, rest, order, targets = with_curves([[-1.0, -1.0, 1.0, 2.0]])
    activations[0, 1] = math.inf
    assert prefix_search(activations, readout, rest, order, targets) == sizes == (2, 2)


def test_neurons_that_tie_are_taken_in_their_own_order():
    norms = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    order = rank_neurons(norms)
    assert order.tolist() == [1, 3, 0, 2, 4]
    # Only neuron 3 says +1: with the other order of the tie one neuron would do.
    activations = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
    sizes = prefix_search(activations, torch.ones(1, 5), torch.full((1, 1), -0.5), order, torch.ones(1))
    assert sizes == (2, 2)


def test_ranks_are_those_of_sorting_and_nan_comes_last():
    norms = torch.tensor([[3.0, NAN, math.inf, 0.0, 3.0, NAN], [NAN] * 6, [0.0, 0.0, 1e-30, 0.0, NAN, 0.0]])
    expected = [
        sorted(range(6), key=lambda j, row=row: (math.isnan(row[j]), 0 if math.isnan(row[j]) else -row[j], j))
        for row in norms.tolist()
    ]
    assert rank_neurons(norms).tolist() == expected
    assert expected[0] == [2, 0, 4, 3, 1, 5]
    assert rank_neurons(norms.reshape(3, 1, 6)).shape == (3, 1, 6)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_the_top_of_a_ranking_is_a_mask_in_the_layers_order(lead):
    order = draw(*lead, 5).argsort(dim=-1)
    for size in [0, 1, 3, 5, 9, NAN]:
        found = in_top(order, torch.full(lead, float(size)))
        for indices, mask in zip(order.reshape(-1, 5).tolist(), found.reshape(-1, 5).tolist(), strict=True):
            kept = indices[: 0 if math.isnan(size) else size]
            assert mask == [j in kept for j in range(5)]


def test_every_network_has_a_top_of_its_own_size():
    order = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 2, 0]])
    found = in_top(order, torch.tensor([1.0, NAN, 2.0]))
    assert found.tolist() == [[False, False, True], [False, False, False], [False, True, True]]
    assert in_top(order, torch.tensor([1, 0, 2])).tolist() == found.tolist()


# Predictions and labels.


@pytest.mark.parametrize("n", [1, 2, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_logits_predict_nothing(n, dtype):
    """In every length: vectors and single numbers may go different ways."""
    assert predictions(torch.full((n, 1), NAN, dtype=dtype)).isnan().all()
    assert predictions(torch.full((n, 3), NAN, dtype=dtype)).isnan().all()
    one = torch.zeros(n, 3, dtype=dtype)
    one[:, 1] = NAN
    one[:, 2] = math.inf
    assert predictions(one).isnan().all()


def test_a_single_logit_predicts_its_sign():
    logits = torch.tensor([[[3.0]], [[-1e-30]], [[0.0]], [[math.inf]]])
    assert predictions(logits).tolist() == [[1], [-1], [0], [1]]


@pytest.mark.parametrize("classes", [2, 3, 17, 113, 500])
def test_the_first_largest_logit_is_predicted(classes):
    assert predictions(torch.zeros(4, classes)).tolist() == [0] * 4
    for first in {0, 1, classes // 2, classes - 1}:
        logits = torch.full((2, classes), -1.0)
        logits[:, first:] = 5.0
        assert predictions(logits).tolist() == [first] * 2
    assert predictions(torch.full((2, classes), -math.inf)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classes_are_told_apart_in_half_precision_too(dtype):
    """A class is a number that bfloat16 does not have from 257 on, float16 from 2049 on."""
    n = 2100
    predicted = predictions(torch.eye(n, dtype=dtype))
    assert predicted.tolist() == list(range(n))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_labels_of_a_single_output_are_signs_or_bits(dtype):
    predicted = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, NAN, NAN])
    bits = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    expected = [True, False, False, True, False, False, False, False]
    assert is_right(predicted, bits.to(dtype), 1).tolist() == expected
    if dtype != torch.bool:
        assert is_right(predicted, (2 * bits - 1).to(dtype), 1).tolist() == expected


def test_labels_of_several_outputs_are_classes():
    predicted = torch.tensor([0.0, 1.0, 2.0, NAN, 0.0])
    assert is_right(predicted, torch.tensor([0, 1, 1, 0, 2]), 3).tolist() == [True, True, False, False, False]
    assert is_right(predicted, torch.tensor([0.0, 1.0, 1.0, 0.0, 2.0]), 3).sum() == 2


@pytest.mark.parametrize(("first", "second"), [((1, -1), (1, 0)), ((1.0, -1.0), (True, False))])
def test_sizes_do_not_depend_on_how_labels_are_written(first, second):
    arguments = problem((), rows=20)[:-1]
    labels = [torch.tensor([pair[row % 3 == 0] for row in range(20)]) for pair in (first, second)]
    assert prefix_search(*arguments, labels[0]) == prefix_search(*arguments, labels[1])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("readout", (2, 3, 5), r"readout: expected \(2, 3, 6\), got \(2, 3, 5\)"),
        ("readout", (3, 6), r"readout: expected \(2, 3, 6\), got \(3, 6\)"),
        ("rest", (2, 1, 3), r"rest: expected \(2, 9, 3\), got \(2, 1, 3\)"),
        ("rest", (2, 9), r"rest: .* got \(2, 9\)"),
        ("order", (6,), r"order: expected \(2, 6\), got \(6,\)"),
        ("targets", (9,), r"targets: expected \(2, 9\), got \(9,\)"),
        ("targets", (2, 9, 1), r"targets: .* got \(2, 9, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, wrong, message):
    arguments = dict(zip(("activations", "readout", "rest", "order", "targets"), problem((2,), outputs=3), strict=True))
    prefix_search(**arguments)
    with pytest.raises(ValueError, match=message):
        prefix_search(**(arguments | {name: torch.zeros(wrong)}))


# One size after another.


class Tried:
    """Predictions of the top neurons by the definition; notes which sizes were asked for."""

    def __init__(self, activations, readout, rest, order, targets):
        self.lead = order.shape[:-1]
        tensors = (activations, readout, rest, order)
        inner = [t.reshape(-1, *t.shape[len(self.lead) :]).tolist() for t in tensors]
        self.networks = list(zip(*inner, strict=True))
        self.targets = targets
        self.sizes = []

    def __call__(self, size):
        self.sizes.append(size)
        found = [predict_with(order[:size], *network) for *network, order in self.networks]
        return torch.tensor(found, dtype=torch.float64).reshape(*self.targets.shape)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize("outputs", [1, 4])
def test_one_size_after_another_finds_the_same(lead, outputs):
    for seed in range(8):
        arguments = problem(lead, 4, 5, outputs, seed)
        found = linear_search(Tried(*arguments), 5, arguments[-1], outputs)
        torch.testing.assert_close(torch.stack(found), slow(*arguments), rtol=0, atol=0)
        assert found.by_predictions.dtype == found.by_accuracy.dtype == torch.float64


def test_it_stops_when_every_network_is_found():
    curves = [[[-1, -1, 1, -1, 1, 1]], [[1, 1, 1, 1, 1, 1]], [[-1, -1, -1, 1, 1, 1]]]
    networks = [with_curves(curve) for curve in curves]
    arguments = [torch.stack(parts) for parts in zip(*networks, strict=True)]
    tried = Tried(*arguments)
    assert linear_search(tried, 5, arguments[-1], 1).by_predictions.tolist() == [2, 0, 3]
    assert sorted(tried.sizes) == [0, 1, 2, 3, 5]


def test_it_goes_on_to_the_last_size_where_it_must():
    arguments = with_curves([[-1, -1, -1, 1]])
    tried = Tried(*arguments)
    assert linear_search(tried, 3, arguments[-1], 1) == (3, 3)
    assert set(tried.sizes) == {0, 1, 2, 3}


def test_the_smaller_size_of_the_other_rule_is_kept():
    arguments = with_curves([[1, 1, -1], [-1, 1, 1]], [1, 1])
    assert linear_search(Tried(*arguments), 2, arguments[-1], 1) == (2, 0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_it_does_not_search_for_what_nan_would_need(outputs):
    activations, readout, rest, order, targets = problem((2,), outputs=outputs)
    rest[1, 3] = NAN
    tried = Tried(activations, readout, rest, order, targets)
    found = linear_search(tried, 6, targets, outputs)
    torch.testing.assert_close(torch.stack(found), slow(activations, readout, rest, order, targets), equal_nan=True)
    assert torch.stack(found).isnan().tolist() == [[False, True]] * 2
    only = Tried(activations[1:], readout[1:], rest[1:], order[1:], targets[1:])
    assert linear_search(only, 6, targets[1:], outputs).by_accuracy.isnan().all()
    assert len(only.sizes) <= 2
