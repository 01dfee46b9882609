import pytest
import torch
from torch import nn

from grok_lightning.networks import ACTIVATIONS, MLPNetwork
from grok_lightning.population import stream


class Square(nn.Module):
    def forward(self, x):
        return x * x


# torch's own modules, by the name that we give them.
MODULES = {"relu": nn.ReLU, "square": Square, "gelu": nn.GELU, "tanh": nn.Tanh, "identity": nn.Identity}


def generators(*seeds):
    return [stream(seed, "initial weights") for seed in seeds]


def network(hidden=(7, 4), seeds=(0, 1, 2), n_inputs=5, n_outputs=3, **options):
    return MLPNetwork(n_inputs, n_outputs, hidden, generators(*seeds), **options)


def as_sequential(population, e, activation="relu", bias=True, output_bias=False):
    """Member e built from torch's layers."""
    layers = []
    for layer in population.hidden:
        layers += [linear_of(layer, e, bias), MODULES[activation]()]
    return nn.Sequential(*layers, linear_of(population.output, e, output_bias))


def linear_of(layer, e, bias):
    _, out, into = layer.weight.shape
    linear = nn.Linear(into, out, bias=bias).to(layer.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(layer.weight[e])
        if bias:
            linear.bias.copy_(layer.bias[e])
    return linear


def check_members(population, x, **options):
    """Values and all gradients of every member are those of torch's layers."""
    logits = population(x)
    logits.pow(3).sum().backward()
    for e in range(population.n_members):
        alone = as_sequential(population, e, **options)
        expected = alone(x if x.ndim == 2 else x[e])
        expected.pow(3).sum().backward()
        torch.testing.assert_close(logits[e], expected, rtol=1e-11, atol=1e-13)
        ours, theirs = list(population.parameters()), list(alone.parameters())
        assert len(ours) == len(theirs)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p.grad[e], q.grad, rtol=1e-11, atol=1e-13)


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_member_is_the_network_of_torchs_layers(activation):
    check_members(network(activation=activation).double(), rows(3, 6, 5), activation=activation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output_bias", [True, False])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 4), (1, 1)])
def test_depths_and_biases(hidden, bias, output_bias):
    options = {"bias": bias, "output_bias": output_bias}
    check_members(network(hidden, **options).double(), rows(3, 6, 5), **options)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("n_rows", [1, 6])
def test_shared_rows_and_one_member(seeds, n_rows):
    check_members(network(seeds=seeds).double(), rows(n_rows, 5))


def test_every_activation_has_a_reference_here():
    assert set(ACTIVATIONS) == set(MODULES)


def test_the_set_up_of_the_paper_has_42_000_parameters():
    # W 1000 x 40, b 1000, u 1000, no output bias.
    assert sum(p.numel() for p in MLPNetwork(40, 1, [1000], generators(0)).parameters()) == 42_000


def test_every_member_starts_as_it_would_alone():
    population = network(seeds=(5, 0, 12), output_bias=True)
    for e, seed in enumerate((5, 0, 12)):
        alone = network(seeds=(seed,), output_bias=True)
        for p, q in zip(population.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p[e], q[0])


def test_layers_of_one_member_start_apart():
    population = network((5, 5), n_inputs=5, seeds=(0,))
    assert not torch.equal(population.hidden[0].weight, population.hidden[1].weight)


def test_initial_rows_have_the_norm_that_the_paper_starts_from():
    # Uniform in ±1/√n, n entries: root mean square 1/√3 whatever n is.
    weight = MLPNetwork(40, 1, [1000], generators(0)).hidden[0].weight
    assert weight[0].norm(dim=1).square().mean().sqrt().item() == pytest.approx(3**-0.5, rel=0.02)
    assert weight.abs().max() <= 40**-0.5


def test_float64_starts_from_the_same_numbers():
    single = network()
    torch.set_default_dtype(torch.float64)
    try:
        double = network()
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(single.parameters(), double.parameters(), strict=True):
        assert q.dtype == torch.float64
        assert torch.equal(p.double(), q)


@pytest.mark.parametrize("index", [0, 2, -1, -3])
def test_a_member_is_a_population_of_one_with_the_same_logits(index):
    population = network(activation="tanh", bias=False, output_bias=True).double()
    one = population.member(index)
    x = rows(6, 5)
    assert one.n_members == 1
    assert one.logits(x).shape == (6, 3)
    torch.testing.assert_close(one.logits(x), population(x)[index], rtol=1e-12, atol=1e-14)


def test_a_member_is_a_copy():
    population = network()
    before = population.output.weight.clone()
    with torch.no_grad():
        population.member(1).output.weight.zero_()
    assert torch.equal(population.output.weight, before)


def test_a_member_is_trained_as_the_population_is():
    population = network().double()
    population.hidden[1].weight.requires_grad_(False)
    population.hidden[0].eval()
    one, two = population.member(1), population.with_state({n: p[1:] for n, p in population.state_dict().items()})
    for made in (one, two):
        frozen = {name for name, parameter in made.named_parameters() if not parameter.requires_grad}
        assert frozen == {"hidden.1.weight"}
        assert {name for name, module in made.named_modules() if not module.training} == {"hidden.0"}
    assert two.n_members == 2
    for name, value in population.state_dict().items():
        assert torch.equal(one.state_dict()[name], value[1:2])
        assert torch.equal(two.state_dict()[name], value[1:])
        assert two.state_dict()[name].dtype == value.dtype
    # A copy, and no tie to the population.
    assert population.hidden[0].weight.requires_grad
    two.requires_grad_(False)
    two.train()
    assert population.hidden[0].weight.requires_grad
    assert not population.hidden[0].training


@pytest.mark.parametrize("index", [3, -4])
def test_a_member_that_is_not_there_is_refused(index):
    with pytest.raises(IndexError, match=f"member {index} of a population of 3"):
        network().member(index)


def test_logits_without_the_axis_are_for_one_member_only():
    with pytest.raises(ValueError, match="3 members; choose one"):
        network().logits(torch.zeros(2, 5))


@pytest.mark.parametrize("hidden", [(), (7, 4)])
def test_like_has_the_shape_of_the_network_for_another_number_of_members(hidden):
    population = network(hidden, activation="square", bias=False, output_bias=True)
    other = population.like(5)
    assert other.n_members == 5
    assert {name: p.shape for name, p in other.named_parameters()} == {
        name: (5, *p.shape[1:]) for name, p in population.named_parameters()
    }
    twin = population.like(3)
    twin.load_state_dict(population.state_dict())
    x = torch.ones(4, 5)
    assert torch.equal(twin(x), population(x))


@pytest.mark.parametrize("shape", [(5,), (2, 6, 5), (1, 3, 6, 5), ()])
def test_inputs_of_another_rank_or_number_of_members_are_refused(shape):
    with pytest.raises(ValueError, match="with E = 3, got") as error:
        network()(torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 1), (3, 6, 7)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match="rows of width 5, got inputs of shape") as error:
        network()(torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_inputs": 0}, "n_inputs: expected a width of at least 1, got 0"),
        ({"n_outputs": -1}, "n_outputs: expected a width of at least 1, got -1"),
        ({"hidden": (4, 0)}, "hidden: expected a width of at least 1, got 0"),
        ({"seeds": ()}, "generators: expected one a member, got none"),
        ({"activation": "Relu"}, "activation: expected one of relu, square, gelu, tanh, identity, got 'Relu'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)
