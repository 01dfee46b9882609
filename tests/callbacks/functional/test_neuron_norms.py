import math

import pytest
import torch
from torch import nn

from grok_callbacks.functional import neuron_norms

SHAPES = [(1, 1), (1, 3), (5, 1), (4, 3), (2, 4, 3), (2, 1, 3, 2)]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def norm_of_each_row(matrix):
    """By the definition, number by number."""
    return [math.sqrt(math.fsum(x * x for x in row)) for row in matrix]


def slow(weight, transpose):
    *lead, rows, columns = weight.shape
    matrices = weight.reshape(-1, rows, columns)
    norms = [norm_of_each_row((m.T if transpose else m).tolist()) for m in matrices]
    return torch.tensor(norms, dtype=torch.float64).reshape(*lead, columns if transpose else rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_incoming_is_the_norm_of_every_row(shape):
    weight = draw(*shape)
    torch.testing.assert_close(neuron_norms(weight, None), slow(weight, transpose=False), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_outgoing_is_the_norm_of_every_column(shape):
    weight = draw(*shape)
    norms = neuron_norms(None, weight, "outgoing")
    torch.testing.assert_close(norms, slow(weight, transpose=True), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("lead", "neurons"), [((), 1), ((), 5), ((3,), 4), ((1, 2), 1)])
def test_product_multiplies_both_norms(lead, neurons):
    incoming, outgoing = draw(*lead, neurons, 3), draw(*lead, 2, neurons, seed=1)
    expected = slow(incoming, transpose=False) * slow(outgoing, transpose=True)
    torch.testing.assert_close(neuron_norms(incoming, outgoing, "product"), expected, rtol=1e-14, atol=0)


def test_neurons_are_those_of_torch_layers():
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    for weights in ("incoming", "outgoing", "product"):
        assert neuron_norms(first.weight, second.weight, weights).shape == (5,)


def test_product_does_not_change_when_relu_neurons_are_rescaled_though_both_norms_do():
    incoming, outgoing = draw(4, 3), draw(2, 4, seed=1)
    scale = torch.tensor([0.1, 1.0, 7.0, 300.0], dtype=torch.float64)
    rescaled = incoming * scale.unsqueeze(1), outgoing / scale
    before, after = neuron_norms(incoming, outgoing, "product"), neuron_norms(*rescaled, "product")
    torch.testing.assert_close(after, before, rtol=1e-13, atol=0)
    torch.testing.assert_close(neuron_norms(rescaled[0], None), neuron_norms(incoming, None) * scale)


def test_norms_do_not_change_when_the_inputs_are_rotated():
    weight = draw(4, 3)
    rotation, _ = torch.linalg.qr(draw(3, 3, seed=1))
    torch.testing.assert_close(neuron_norms(weight @ rotation, None), neuron_norms(weight, None), rtol=1e-13, atol=0)


@pytest.mark.parametrize("weights", ["incoming", "outgoing", "product"])
def test_zero_weights_have_norm_zero(weights):
    assert torch.equal(neuron_norms(torch.zeros(3, 2), torch.zeros(4, 3), weights), torch.zeros(3))


def test_a_neuron_without_inputs_has_norm_zero_and_no_neurons_have_no_norms():
    assert torch.equal(neuron_norms(torch.empty(3, 0), None), torch.zeros(3))
    assert neuron_norms(torch.empty(0, 3), None).shape == (0,)
    assert neuron_norms(None, torch.empty(2, 0), "outgoing").shape == (0,)


def test_nan_stays_with_its_neuron():
    incoming, outgoing = torch.ones(3, 2), torch.ones(2, 3)
    incoming[1, 0] = torch.nan
    for weights, outgoing_nan in [("incoming", False), ("product", False), ("product", True)]:
        if outgoing_nan:
            outgoing[0, 2] = torch.nan
        expected = [False, True, outgoing_nan]
        assert neuron_norms(incoming, outgoing, weights).isnan().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert neuron_norms(torch.ones(3, 2, dtype=dtype), torch.ones(2, 3, dtype=dtype), "product").dtype == dtype


@pytest.mark.parametrize(
    ("incoming", "outgoing", "weights", "message"),
    [
        (None, torch.ones(2, 3), "incoming", "incoming: expected a weight of at least two dimensions, got None"),
        (torch.ones(3), None, "incoming", r"incoming: .* got \(3,\)"),
        (torch.ones(3, 2), None, "outgoing", "outgoing: .* got None"),
        (torch.ones(3, 2), None, "product", "outgoing: .* got None"),
        (None, torch.ones(2, 3), "product", "incoming: .* got None"),
        (torch.ones(3, 2), torch.ones(2, 4), "product", r"got \(3, 2\) and \(2, 4\)"),
        (torch.ones(5, 3, 2), torch.ones(2, 3), "product", r"got \(5, 3, 2\) and \(2, 3\)"),
        (torch.ones(3, 2), torch.ones(2, 3), "both", "got 'both'"),
    ],
)
def test_weights_that_do_not_serve_are_refused(incoming, outgoing, weights, message):
    with pytest.raises(ValueError, match=message):
        neuron_norms(incoming, outgoing, weights)
