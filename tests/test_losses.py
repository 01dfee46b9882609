import math

import pytest
import torch

from grok_lightning.losses import LOSSES, check_labels, correct, cross_entropy, get_loss, hinge, squared
from grok_lightning.losses import cross_entropy_float32 as cross_entropy_32

# Both sides of the hinge's kink and the kink itself, zero, and logits so far off that a shortcut would show.
SIGN_LOGITS = [0.0, 0.3, -0.3, 1.0, -1.0, 1.7, -4.0, 20.5, -20.5, 60.0, -60.0]


def rows_of_signs():
    """Logits (2, 22, 1) and signs (2, 22): every logit with either sign, the members in opposite order."""
    logits = torch.tensor([SIGN_LOGITS * 2, (SIGN_LOGITS * 2)[::-1]], dtype=torch.float64).unsqueeze(-1)
    signs = torch.tensor([1.0] * 11 + [-1.0] * 11, dtype=torch.float64)
    return logits.requires_grad_(), torch.stack([signs, signs.flip(0)])


def rows_of_classes(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    logits = 4 * torch.randn(2, 9, n_classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(n_classes, (2, 9), generator=generator)
    return logits.requires_grad_(), targets


def softmax(row):
    largest = max(row)
    exps = [math.exp(f - largest) for f in row]
    return [value / math.fsum(exps) for value in exps]


# One row each: the textbook's loss and its gradient with respect to the logits.
def hinge_row(row, y):
    margin = 1 - y * row[0]
    return max(0.0, margin), [-y if margin > 0 else 0.0]


def squared_signs_row(row, y):
    return (row[0] - y) ** 2, [2 * (row[0] - y)]


def logistic_row(row, y):
    z = y * row[0]
    loss = math.log1p(math.exp(-z)) if z > 0 else -z + math.log1p(math.exp(z))
    return loss, [-y / (1 + math.exp(z))]


def squared_classes_row(row, y):
    errors = [f - (c == y) for c, f in enumerate(row)]
    return math.fsum(error**2 for error in errors), [2 * error for error in errors]


def cross_entropy_row(row, y):
    largest = max(row)
    loss = largest + math.log(math.fsum(math.exp(f - largest) for f in row)) - row[y]
    return loss, [p - (c == y) for c, p in enumerate(softmax(row))]


def check_against(loss, by_row, logits, targets):
    values = loss(logits, targets)
    assert values.shape == targets.shape
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    rows = [
        [by_row(f, y) for f, y in zip(*m, strict=True)] for m in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    expected = torch.tensor([[value for value, _ in member] for member in rows], dtype=torch.float64)
    expected_gradient = torch.tensor([[grad for _, grad in member] for member in rows], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "by_row"),
    [
        (hinge, hinge_row),
        (squared, squared_signs_row),
        (cross_entropy, logistic_row),
        (cross_entropy_32, logistic_row),
    ],
)
def test_losses_of_signs_are_those_of_the_textbook(loss, by_row):
    check_against(loss, by_row, *rows_of_signs())


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize(
    ("loss", "by_row"),
    [(squared, squared_classes_row), (cross_entropy, cross_entropy_row), (cross_entropy_32, cross_entropy_row)],
)
def test_losses_of_classes_are_those_of_the_textbook(loss, by_row, n_classes):
    check_against(loss, by_row, *rows_of_classes(n_classes))


@pytest.mark.parametrize(("sign", "f"), [(1.0, 3.0), (-1.0, 3.0), (1.0, -0.5)])
def test_cross_entropy_of_a_sign_is_that_of_two_classes_with_logits_0_and_f(sign, f):
    two = cross_entropy(torch.tensor([[[0.0, f]]]), torch.tensor([[int(sign > 0)]]))
    one = cross_entropy(torch.tensor([[[f]]]), torch.tensor([[sign]]))
    torch.testing.assert_close(one, two, rtol=1e-14, atol=0)


@pytest.mark.parametrize("gap", [18.0, 25.0, 30.0])
def test_cross_entropy_still_learns_where_float32_has_stopped(gap):
    logits = torch.tensor([[[gap, 0.0]]], requires_grad=True)
    targets = torch.tensor([[0]])
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float64
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    # float64 itself keeps three digits of exp(-30) beside 1.
    assert loss.item() == pytest.approx(math.exp(-gap), rel=2e-3)
    assert gradient[0, 0, 0].item() == pytest.approx(-math.exp(-gap), rel=2e-3)
    in_32 = cross_entropy_32(logits, targets)
    assert in_32.dtype == torch.float32
    (gradient_32,) = torch.autograd.grad(in_32.sum(), logits)
    assert in_32.item() == 0
    assert gradient_32[0, 0, 0].item() == 0


@pytest.mark.parametrize("loss", [*LOSSES.values(), correct])
@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        ((1, 4, 1), (1, 4, 1)),  # targets with the outputs' axis
        ((1, 4, 1), (4,)),  # no member axis: would broadcast
        ((4, 1), (4,)),  # a plain network's logits
        ((2, 4, 1), (1, 4)),  # one member's targets for two
        ((4, 4, 1), (4, 1)),  # would broadcast
        ((2, 4, 1), (4, 2)),
        ((1, 4), (1, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_both_shown(loss, logits, targets):
    # Each of these would broadcast, or nearly; what is wanted is an error that shows both.
    with pytest.raises(ValueError, match=r"logits \(E, B, C\) and targets \(E, B\), got") as error:
        loss(torch.zeros(logits), torch.ones(targets))
    shown = str(error.value).split("got")[1]
    assert shown.index(str(logits)) < shown.rindex(str(targets))


@pytest.mark.parametrize("loss", [*LOSSES.values(), correct])
def test_signs_need_exactly_one_output(loss):
    # E = B = C: the one case in which torch would broadcast without a word.
    with pytest.raises(ValueError, match="one output"):
        loss(torch.zeros(2, 2, 2), torch.ones(2, 2))


def test_hinge_refuses_classes():
    with pytest.raises(ValueError, match=r"−1.0 and \+1.0, got targets of type torch.int64"):
        hinge(torch.zeros(1, 3, 1), torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_32])
def test_cross_entropy_of_a_single_class_is_refused(loss):
    # It would be 0 whatever the network says.
    with pytest.raises(ValueError, match="at least two outputs"):
        loss(torch.zeros(1, 3, 1), torch.zeros(1, 3, dtype=torch.int64))


def test_a_sign_is_right_where_the_logit_has_it_and_0_and_nan_are_wrong():
    logits = torch.tensor([[2.0, -2.0, 1e-30, 0.0, -0.0, math.nan, math.inf]]).unsqueeze(-1)
    assert correct(logits, torch.ones(1, 7)).tolist() == [[True, False, True, False, False, False, True]]
    assert correct(logits, -torch.ones(1, 7)).tolist() == [[False, True, False, False, False, False, False]]


def test_a_class_is_right_where_its_logit_is_the_first_largest():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [-1.0, -2.0, -1.5]]])
    assert correct(logits, torch.tensor([[1, 0, 1, 2]])).tolist() == [[True, True, False, False]]


def test_a_row_with_a_nan_logit_is_wrong_for_every_class():
    logits = torch.tensor([[[1.0, math.nan, 0.0]]])
    assert not any(bool(correct(logits, torch.tensor([[c]]))) for c in range(3))


def test_labels_that_mean_something_are_let_through():
    check_labels(torch.tensor([[-1.0, 1.0]]), 1)
    check_labels(torch.tensor([[0, 6]]), 7)
    check_labels(torch.empty(2, 0), 1)
    check_labels(torch.empty(2, 0, dtype=torch.int64), 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], r"must be −1 or \+1, got \[0.0, 1.0\]"),
        ([-1.0, 2.0], r"must be −1 or \+1"),
        ([1.0, math.nan], r"must be −1 or \+1"),
        ([0, 3], r"\[0, 3\), got 0 to 3"),
        ([-1, 1], r"\[0, 3\), got -1 to 1"),
    ],
)
def test_labels_without_meaning_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(torch.tensor([labels]), 3)


def test_a_loss_is_found_by_its_name_or_taken_as_it_is():
    for name, loss in LOSSES.items():
        assert get_loss(name) is loss
    assert get_loss(torch.dist) is torch.dist
    with pytest.raises(ValueError, match=r"hinge, squared, .* or a function, got 'hinges'"):
        get_loss("hinges")
