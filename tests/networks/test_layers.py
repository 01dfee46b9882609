import math

import pytest
import torch
from torch import nn

from grok_lightning.networks import MemberEmbedding, MemberLayerNorm, MemberLinear, draw_default, lead_with_members
from grok_lightning.population import stream


def drawn(sizes=(3, 5, 4), bias=True, seed=0):
    """A float64 layer of (E, in, out)."""
    layer = MemberLinear(*sizes, bias=bias)
    layer.draw([stream(seed + e, "initial weights") for e in range(sizes[0])])
    return layer.double()


def as_linear(layer, e):
    """Member e as torch's own layer."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).double()
    with torch.no_grad():
        linear.weight.copy_(layer.weight[e])
        if layer.bias is not None:
            linear.bias.copy_(layer.bias[e])
    return linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 5, 4), (4, 1, 1), (2, 7, 1)])
@pytest.mark.parametrize("n_rows", [0, 1, 5, 6, 7, 8, 40])  # from where there are more rows than features, Wᵀ
def test_every_member_is_the_linear_layer_that_it_holds(sizes, bias, n_rows):
    layer = drawn(sizes, bias)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sizes[0], n_rows, sizes[1], dtype=torch.float64, generator=generator, requires_grad=True)
    y = layer(x)
    assert y.shape == (sizes[0], n_rows, sizes[2])
    y.pow(3).sum().backward()
    for e in range(sizes[0]):
        linear, own = as_linear(layer, e), x[e].detach().requires_grad_()
        expected = linear(own)
        expected.pow(3).sum().backward()
        torch.testing.assert_close(y[e], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(x.grad[e], own.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer.weight.grad[e], linear.weight.grad, rtol=1e-12, atol=1e-13)
        if bias:
            torch.testing.assert_close(layer.bias.grad[e], linear.bias.grad, rtol=1e-12, atol=1e-13)


def test_shared_rows_reach_every_member():
    layer = drawn()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = layer(lead_with_members(x, 3, row_rank=1))
    for e in range(3):
        torch.testing.assert_close(y[e], as_linear(layer, e)(x), rtol=1e-12, atol=1e-13)


def test_without_a_bias_there_is_no_such_parameter():
    assert [name for name, _ in MemberLinear(2, 3, 4, bias=False).named_parameters()] == ["weight"]
    assert "n_members=2, in_features=3, out_features=4, bias=False" in repr(MemberLinear(2, 3, 4, bias=False))


def test_every_member_starts_as_it_would_alone():
    population = MemberLinear(3, 5, 4)
    population.draw([stream(seed, "initial weights") for seed in (4, 0, 9)])
    for e, seed in enumerate((4, 0, 9)):
        alone = MemberLinear(1, 5, 4)
        alone.draw([stream(seed, "initial weights")])
        assert torch.equal(population.weight[e], alone.weight[0])
        assert torch.equal(population.bias[e], alone.bias[0])
    assert not torch.equal(population.weight[0], population.weight[1])


@pytest.mark.parametrize("fan_in", [1, 3, 40, 1000])
def test_the_distribution_is_that_of_torch(fan_in):
    n = 40_000 // fan_in
    layer = MemberLinear(1, fan_in, n)
    layer.draw([stream(0, "initial weights")])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(fan_in, n)
    bound = 1 / math.sqrt(fan_in)
    for ours, torchs in [(layer.weight, linear.weight), (layer.bias, linear.bias)]:
        values, expected = ours.detach().flatten(), torchs.detach().flatten()
        # The standard error of a standard deviation of uniform values is 0.45 / √n of it; five of them, twice over.
        tolerance = 5 * math.sqrt(2) * 0.45 / math.sqrt(len(values))
        assert values.abs().max() <= bound
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=tolerance)
        assert float(values.std()) == pytest.approx(float(expected.std()), rel=tolerance)
        assert float(values.mean()) == pytest.approx(0, abs=5 * bound / math.sqrt(3 * len(values)))
    assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)


def test_drawing_does_not_touch_the_global_stream():
    before = torch.get_rng_state()
    drawn()
    assert torch.equal(before, torch.get_rng_state())


def test_a_seed_means_the_same_weights_whatever_the_default_dtype_is():
    single = draw_default((50,), 3, stream(0, "initial weights"))
    torch.set_default_dtype(torch.float64)
    try:
        double = MemberLinear(1, 3, 50)
        again = draw_default((50,), 3, stream(0, "initial weights"))
        double.draw([stream(0, "initial weights")])
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.dtype == torch.float32
    assert torch.equal(single, again)
    assert double.weight.dtype == torch.float64
    alone = MemberLinear(1, 3, 50)
    alone.draw([stream(0, "initial weights")])
    assert torch.equal(double.weight, alone.weight.double())
    assert torch.equal(double.bias, alone.bias.double())


def test_shared_rows_are_expanded_and_not_copied():
    x = torch.zeros(4, 5)
    led = lead_with_members(x, 3, row_rank=1)
    assert led.shape == (3, 4, 5)
    assert led.data_ptr() == x.data_ptr()
    assert lead_with_members(led, 3, row_rank=1) is led


@pytest.mark.parametrize(("shape", "row_rank"), [((4,), 0), ((4, 5), 1), ((4, 5, 6), 2)])
def test_the_rank_of_a_row_decides_what_is_shared(shape, row_rank):
    assert lead_with_members(torch.zeros(shape), 4, row_rank).shape == (4, *shape)
    assert lead_with_members(torch.zeros(4, *shape), 4, row_rank).shape == (4, *shape)


@pytest.mark.parametrize(("shape", "row_rank"), [((5,), 1), ((2, 4, 5), 1), ((3, 1, 4, 5), 1), ((), 0), ((4, 5), 2)])
def test_other_ranks_and_another_number_of_members_are_refused_with_both_shapes(shape, row_rank):
    with pytest.raises(ValueError, match=r"\(E, B.* with E = 3, got") as error:
        lead_with_members(torch.zeros(shape), 3, row_rank)
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_and_few_are_mapped_alike(bias):
    """A layer of 5 features into 4 writes its product another way for 6 rows than for 5."""
    layer = drawn((3, 5, 4), bias)
    x = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x)[:, :5], layer(x[:, :5]), rtol=1e-13, atol=1e-14)


def filled(layer, seed=0):
    """The layer in float64 with parameters from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.double().parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=generator))
    return layer


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (0,), (1, 1), ()])
def test_every_member_is_the_embedding_that_it_holds(shape, n_members):
    layer = filled(MemberEmbedding(n_members, 5, 2))
    tokens = torch.randint(5, (n_members, *shape), generator=torch.Generator().manual_seed(1))
    vectors = layer(tokens)
    assert vectors.shape == (n_members, *shape, 2)
    vectors.pow(3).sum().backward()
    for e in range(n_members):
        embedding = nn.Embedding(5, 2).double()
        embedding.load_state_dict({name: value[e] for name, value in layer.state_dict().items()})
        expected = embedding(tokens[e])
        expected.pow(3).sum().backward()
        assert torch.equal(vectors[e], expected)
        torch.testing.assert_close(layer.weight.grad[e], embedding.weight.grad, rtol=1e-13, atol=1e-14)


def test_an_embedding_says_its_sizes():
    assert "n_members=3, n_tokens=5, d_model=2" in repr(MemberEmbedding(3, 5, 2))


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (0, 5), (5,), (4, 1)])
def test_every_member_is_the_layer_norm_that_it_holds(shape, eps, n_members):
    layer = filled(MemberLayerNorm(n_members, shape[-1], eps))
    generator = torch.Generator().manual_seed(1)
    # Far from 0, where a variance from sums of squares would lose its digits.
    x = (100 + torch.randn(n_members, *shape, dtype=torch.float64, generator=generator)).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    y.pow(3).sum().backward()
    for e in range(n_members):
        norm, own = nn.LayerNorm(shape[-1], eps).double(), x[e].detach().requires_grad_()
        norm.load_state_dict({name: value[e] for name, value in layer.state_dict().items()})
        expected = norm(own)
        expected.pow(3).sum().backward()
        torch.testing.assert_close(y[e], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(x.grad[e], own.grad, rtol=1e-9, atol=1e-10)
        for p, q in zip(layer.parameters(), norm.parameters(), strict=True):
            torch.testing.assert_close(p.grad[e], q.grad, rtol=1e-9, atol=1e-10)


def test_a_layer_norm_begins_as_torchs():
    layer, norm = MemberLayerNorm(3, 5), nn.LayerNorm(5)
    assert layer.eps == norm.eps
    for e in range(3):
        assert torch.equal(layer.weight[e], norm.weight)
        assert torch.equal(layer.bias[e], norm.bias)
