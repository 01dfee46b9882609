"""The transformer is that of the textbook, however it is computed."""

import math
import shutil
from importlib.metadata import version
from itertools import product

import pytest
import torch
from torch import nn

from grok_lightning.networks import ACTIVATIONS, TransformerNetwork
from grok_lightning.population import stream


class Square(nn.Module):
    def forward(self, x):
        return x * x


# torch's own modules, by the name that we give them.
MODULES = {"relu": nn.ReLU, "square": Square, "gelu": nn.GELU, "tanh": nn.Tanh, "identity": nn.Identity}

BIASES = ("mlp_bias", "attention_bias", "output_bias")
ALL_BIASES = dict.fromkeys(BIASES, True)
NO_BIASES = dict.fromkeys(BIASES, False)


class TextbookLayer(nn.Module):
    """Causal attention and neurons, from torch's layers; heads in a loop, the mask written out."""

    def __init__(self, d_model, n_heads, d_head, d_mlp, activation, mlp_bias, attention_bias, layer_norm):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
        self.attention_norm = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.query = nn.Linear(d_model, n_heads * d_head, bias=attention_bias)
        self.key = nn.Linear(d_model, n_heads * d_head, bias=attention_bias)
        self.value = nn.Linear(d_model, n_heads * d_head, bias=attention_bias)
        self.attention = nn.Linear(n_heads * d_head, d_model, bias=attention_bias)
        self.mlp_norm = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.mlp_in = nn.Linear(d_model, d_mlp, bias=mlp_bias)
        self.activation = MODULES[activation]()
        self.mlp_out = nn.Linear(d_mlp, d_model, bias=mlp_bias)

    def forward(self, x):
        """(B, T, d) to the same, and what was computed on the way."""
        n_rows, length = x.shape[:2]
        normed = self.attention_norm(x)
        q, k, v = (
            m(normed).view(n_rows, length, self.n_heads, self.d_head) for m in (self.query, self.key, self.value)
        )
        patterns, mixed = [], []
        for head in range(self.n_heads):
            scores = q[:, :, head] @ k[:, :, head].mT / math.sqrt(self.d_head)
            for reader, read in product(range(length), range(length)):
                if read > reader:
                    scores[:, reader, read] = -math.inf
            patterns.append(torch.softmax(scores, dim=-1))
            mixed.append(patterns[-1] @ v[:, :, head])
        x = x + self.attention(torch.cat(mixed, dim=-1))
        before = self.mlp_in(self.mlp_norm(x))
        after = self.activation(before)
        x = x + self.mlp_out(after)
        pattern = torch.stack(patterns, dim=1)
        return x, {"q": q, "k": k, "v": v, "pattern": pattern, "mlp_pre": before, "mlp_post": after, "resid": x}


class Textbook(nn.Module):
    """One member, every position computed, parameters by the names that the network has."""

    def __init__(self, network, e):
        super().__init__()
        n = network
        self.embed = nn.Embedding(n.n_tokens, n.d_model)
        self.positions = nn.Embedding(n.n_positions, n.d_model)
        sizes = (n.d_model, n.n_heads, n.d_head, n.d_mlp, n.activation, n.mlp_bias, n.attention_bias, n.layer_norm)
        self.layers = nn.ModuleList(TextbookLayer(*sizes) for _ in n.layers)
        self.norm = nn.LayerNorm(n.d_model) if n.layer_norm else nn.Identity()
        self.output = nn.Linear(n.d_model, n.n_outputs, bias=n.output_bias)
        self.to(n.embed.weight.dtype)
        self.load_state_dict({name: value[e] for name, value in n.state_dict().items()})

    def forward(self, tokens):
        """(B, T) to logits (B, T, C) at every position, and activations."""
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]))
        found = {"embed": x}
        for i, layer in enumerate(self.layers):
            x, of_layer = layer(x)
            found |= {f"layers.{i}.{name}": value for name, value in of_layer.items()}
        return self.output(self.norm(x)), found


def generators(*seeds):
    return [stream(seed, "initial weights") for seed in seeds]


SIZES = {"n_tokens": 7, "n_positions": 4, "n_outputs": 5, "d_model": 6, "n_heads": 2, "d_head": 4, "d_mlp": 9}


def network(seeds=(0, 1, 2), **options):
    """Small, in float64, every weight and bias away from where it starts."""
    made = TransformerNetwork(**(SIZES | options), generators=generators(*seeds)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=torch.float64, generator=generator))
    return made


# Which of four positions have one token in all rows.
CONSTANT = {
    "none": (),
    "operator and equals sign": (1, 3),
    "all but the last": (0, 1, 2),
    "the last alone": (3,),
    "all, one distinct row": (0, 1, 2, 3),
}


def rows(n_rows=9, constant=(), members=None, n_tokens=7, seed=0):
    """Tokens (B, T), or (E, B, T) for a number of members."""
    lead = () if members is None else (members,)
    tokens = torch.randint(n_tokens, (*lead, n_rows, 4), generator=torch.Generator().manual_seed(seed))
    for position in constant:
        tokens[..., position] = (position + 5) % n_tokens
    return tokens


def check_members(population, tokens):
    """Values and all gradients of every member are the textbook's."""
    logits = population(tokens)
    population.zero_grad()
    logits.sin().sum().backward()
    assert logits.shape == (population.n_members, tokens.shape[-2], population.n_outputs)
    for e in range(population.n_members):
        alone = Textbook(population, e)
        expected = alone(tokens if tokens.ndim == 2 else tokens[e])[0][:, -1]
        torch.testing.assert_close(logits[e], expected, rtol=1e-10, atol=1e-11)
        expected.sin().sum().backward()
        theirs = dict(alone.named_parameters())
        assert [name for name, _ in population.named_parameters()] == list(theirs)
        for name, p in population.named_parameters():
            # Of tokens that no row has, torch's embedding has gradient 0, and nothing is left out.
            torch.testing.assert_close(p.grad[e], theirs[name].grad, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m)


# The fast way


@pytest.mark.parametrize("constant", CONSTANT.values(), ids=CONSTANT)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["shared rows", "own rows"])
@pytest.mark.parametrize("biases", [ALL_BIASES, NO_BIASES], ids=["biases", "no biases"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["", "LayerNorm"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_textbook(n_layers, layer_norm, biases, shared, members, constant):
    population = network(range(members), n_layers=n_layers, layer_norm=layer_norm, **biases)
    check_members(population, rows(constant=constant, members=None if shared else members))


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("bias", BIASES)
def test_each_bias_alone(bias, n_layers):
    check_members(network(n_layers=n_layers, **(NO_BIASES | {bias: True})), rows())


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations(activation, n_layers):
    check_members(network(n_layers=n_layers, activation=activation), rows(constant=(1, 3)))


def test_every_activation_has_a_reference_here():
    assert set(ACTIVATIONS) == set(MODULES)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_heads": 1, "d_head": None},
        {"n_heads": 6, "d_head": None},
        {"d_head": 1, "n_heads": 3},
        {"d_model": 1, "n_heads": 1, "d_head": 2, "d_mlp": 1, "n_outputs": 1},
        {"d_mlp": None},
        {"n_outputs": 1},
        {"n_tokens": 100},
    ],
    ids=str,
)
def test_sizes(sizes, n_layers):
    check_members(network(n_layers=n_layers, **sizes), rows(constant=(1,)))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_lengths_of_rows(length, n_tokens, n_layers):
    population = network(n_layers=n_layers, n_positions=length, n_tokens=n_tokens)
    tokens = torch.randint(n_tokens, (9, length), generator=torch.Generator().manual_seed(0))
    check_members(population, tokens)
    check_members(population, torch.stack([tokens, tokens.flip(0), tokens * 0]))


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_a_single_row(shared, members, n_layers):
    population = network(range(members), n_layers=n_layers, layer_norm=True)
    check_members(population, rows(1, members=None if shared else members))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_token_that_is_each_members_own_is_not_taken_for_one_of_all(n_layers):
    tokens = rows(members=3)
    tokens[:, :, 1] = torch.tensor([[2], [3], [2]])
    tokens[:, :, 3] = torch.tensor([[4], [4], [6]])
    check_members(network(n_layers=n_layers), tokens)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("position", [0, 3])
def test_one_row_among_many_that_differs_is_seen(position, n_layers):
    tokens = rows(constant=(0, 3), members=3)
    tokens[2, -1, position] += 1
    tokens %= 7
    check_members(network(n_layers=n_layers), tokens)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_integers_of_other_types(n_layers, dtype):
    population, tokens = network(n_layers=n_layers), rows(constant=(1,))
    assert torch.equal(population(tokens.to(dtype)), population(tokens))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_no_rows_give_no_logits_and_gradients_of_zero(n_layers, lead, cache):
    population = network(n_layers=n_layers, layer_norm=True)
    tokens = torch.zeros(*lead, 0, 4, dtype=torch.int64)
    population.check_inputs(tokens)
    logits = population(tokens, cache=True)[0] if cache else population(tokens)
    assert logits.shape == (3, 0, 5)
    logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in population.parameters())


def test_rows_may_lie_in_memory_as_they_like():
    population, tokens = network(), rows(n_rows=18, constant=(1,))
    expected = population(tokens[::2].contiguous())
    assert torch.equal(population(tokens[::2]), expected)
    assert torch.equal(population(tokens[::2].T.contiguous().T), expected)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_hooks_see_the_last_position_only_in_the_last_layer_and_pairs_in_the_first(n_layers):
    population, tokens = network(n_layers=n_layers), rows(constant=(1, 3))
    seen = {}
    for i, layer in enumerate(population.layers):
        for name in ("key", "mlp_in"):
            getattr(layer, name).register_forward_hook(
                lambda module, given, out, key=(i, name): seen.setdefault(key, []).append(out.shape[1])
            )
    population(tokens)
    # Two positions with 7 tokens each, two with one: 16 pairs, in one piece or position by position.
    assert sum(seen[0, "key"]) == 7 + 1 + 7 + 1
    for i in range(1, n_layers):
        assert seen[i, "key"] == [9 * 4]
    for i in range(n_layers):
        assert seen[i, "mlp_in"] == [9 if i == n_layers - 1 else 9 * 4]


# The textbook's way


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_cache_has_all_activations_of_the_textbook(n_layers, shared):
    population = network(n_layers=n_layers, layer_norm=True, **ALL_BIASES)
    tokens = rows(constant=(1, 3), members=None if shared else 3)
    logits, cache = population(tokens, cache=True)
    torch.testing.assert_close(logits, population(tokens), rtol=1e-11, atol=1e-12)
    for e in range(3):
        every, expected = Textbook(population, e)(tokens if shared else tokens[e])
        torch.testing.assert_close(logits[e], every[:, -1], rtol=1e-11, atol=1e-12)
        assert list(cache) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(cache[name][e], value, rtol=1e-11, atol=1e-12)


def test_the_cache_has_the_names_and_shapes_that_are_promised():
    cache = network(n_layers=2)(rows(), cache=True)[1]
    shapes = {
        "q": (3, 9, 4, 2, 4),
        "k": (3, 9, 4, 2, 4),
        "v": (3, 9, 4, 2, 4),
        "pattern": (3, 9, 2, 4, 4),
        "mlp_pre": (3, 9, 4, 9),
        "mlp_post": (3, 9, 4, 9),
        "resid": (3, 9, 4, 6),
    }
    expected = {"embed": (3, 9, 4, 6)}
    for i in range(2):
        expected |= {f"layers.{i}.{name}": shape for name, shape in shapes.items()}
    assert {name: tuple(value.shape) for name, value in cache.items()} == expected


def test_patterns_are_shares_of_what_came_before():
    pattern = network()(rows(), cache=True)[1]["layers.0.pattern"]
    torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(3, 9, 2, 4, dtype=torch.float64))
    for reader, read in product(range(4), range(4)):
        assert bool((pattern[..., reader, read] > 0).all()) is (read <= reader)
    assert bool((pattern[..., 0, 0] == 1).all())


def test_gradients_flow_through_the_cache_as_through_the_fast_way():
    population, tokens = network(n_layers=2), rows(constant=(1, 3))
    gradients = []
    for logits in (population(tokens), population(tokens, cache=True)[0]):
        population.zero_grad()
        logits.sin().sum().backward()
        gradients.append([p.grad.clone() for p in population.parameters()])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


# Initial weights


def test_the_default_network_has_the_parameters_of_the_papers():
    # d_model 128, 4 heads of 32, 512 neurons with biases; 115 tokens, 4 positions, 113 outputs.
    default = TransformerNetwork(115, 4, 113, generators(0))
    assert sum(p.numel() for p in default.parameters()) == 226_944
    assert sum(p.numel() for p in TransformerNetwork(115, 4, 113, generators(0), **NO_BIASES).parameters()) == 226_304
    assert (default.d_head, default.d_mlp) == (32, 512)


def test_parameters_are_named_and_shaped_as_torch_would_have_them():
    made = TransformerNetwork(**(SIZES | {"n_layers": 2}), generators=generators(0, 1, 2), layer_norm=True)
    layer = {
        "attention_norm.weight": (3, 6),
        "attention_norm.bias": (3, 6),
        "query.weight": (3, 8, 6),
        "key.weight": (3, 8, 6),
        "value.weight": (3, 8, 6),
        "attention.weight": (3, 6, 8),
        "mlp_norm.weight": (3, 6),
        "mlp_norm.bias": (3, 6),
        "mlp_in.weight": (3, 9, 6),
        "mlp_in.bias": (3, 9),
        "mlp_out.weight": (3, 6, 9),
        "mlp_out.bias": (3, 6),
    }
    expected = {"embed.weight": (3, 7, 6), "positions.weight": (3, 4, 6)}
    expected |= {f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    expected |= {"norm.weight": (3, 6), "norm.bias": (3, 6), "output.weight": (3, 5, 6)}
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == expected


def test_initial_weights_have_the_variances_that_are_promised():
    made = TransformerNetwork(115, 40, 113, generators(0), n_layers=2, layer_norm=True, **ALL_BIASES)
    seen = 0
    for name, p in made.named_parameters():
        values = p.detach().flatten().double()
        if "norm" in name:
            assert bool((values == (1 if name.endswith("weight") else 0)).all()), name
        elif name.endswith("bias"):
            assert not values.any(), name
        else:
            variance = 1 / 113 if name == "output.weight" else 1 / 128
            # Five standard errors of a standard deviation, and of a mean.
            assert float(values.std()) == pytest.approx(math.sqrt(variance), rel=5 / math.sqrt(2 * len(values))), name
            assert abs(float(values.mean())) < 5 * math.sqrt(variance / len(values)), name
            kurtosis = float(values.pow(4).mean() / values.square().mean() ** 2)
            assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(96 / len(values))), name
            seen += 1
    assert seen == 2 + 2 * 6 + 1


def test_the_variance_of_the_output_is_over_outputs_and_of_all_else_over_the_width():
    # 1/4 and 1/64: the wrong one, or the number of inputs, would show; the neurons' way back has 256 inputs.
    made = TransformerNetwork(500, 50, 4, generators(0), d_model=64, n_heads=8)
    assert float(made.output.weight.detach().std()) == pytest.approx(1 / 2, rel=0.2)
    for p in (made.embed.weight, made.layers[0].mlp_out.weight, made.layers[0].attention.weight):
        assert float(p.detach().std()) == pytest.approx(1 / 8, rel=0.1)


def test_every_member_starts_as_it_would_alone():
    options = SIZES | {"n_layers": 2, "layer_norm": True} | ALL_BIASES
    population = TransformerNetwork(**options, generators=generators(5, 0, 12))
    for e, seed in enumerate((5, 0, 12)):
        alone = TransformerNetwork(**options, generators=generators(seed))
        for p, q in zip(population.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p[e], q[0])
    assert not torch.equal(population.embed.weight[0], population.embed.weight[1])


def test_tensors_of_one_member_start_apart():
    layers = TransformerNetwork(**SIZES | {"n_layers": 2}, generators=generators(0)).layers
    starts = [p for layer in layers for p in (layer.query.weight, layer.key.weight, layer.value.weight)]
    assert all(not torch.equal(p, q) for i, p in enumerate(starts) for q in starts[:i])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_float64_starts_from_the_same_numbers(layer_norm):
    options = SIZES | {"layer_norm": layer_norm, "generators": generators(0, 1)}
    single = TransformerNetwork(**options)
    torch.set_default_dtype(torch.float64)
    try:
        double = TransformerNetwork(**options | {"generators": generators(0, 1)})
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(single.parameters(), double.parameters(), strict=True):
        assert (p.dtype, q.dtype) == (torch.float32, torch.float64)
        # Scaled in float32 too: not a bit is another.
        assert torch.equal(p.double(), q)


def test_drawing_does_not_touch_the_global_stream():
    before = torch.get_rng_state()
    TransformerNetwork(**SIZES, generators=generators(0))
    assert torch.equal(before, torch.get_rng_state())


# Members


@pytest.mark.parametrize("index", [0, 2, -1, -3])
def test_a_member_is_a_population_of_one_with_the_same_logits(index):
    population = network(n_layers=2, activation="gelu", layer_norm=True, **ALL_BIASES)
    one = population.member(index)
    tokens = rows()
    assert one.n_members == 1
    assert one.logits(tokens).shape == (9, 5)
    torch.testing.assert_close(one.logits(tokens), population(tokens)[index], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("index", [3, -4])
def test_a_member_that_is_not_there_is_refused(index):
    with pytest.raises(IndexError, match=f"member {index} of a population of 3"):
        network().member(index)


def test_a_member_is_a_copy():
    population = network()
    before = population.embed.weight.clone()
    with torch.no_grad():
        population.member(1).embed.weight.zero_()
    assert torch.equal(population.embed.weight, before)


def test_logits_without_the_axis_are_for_one_member_only():
    with pytest.raises(ValueError, match="3 members; choose one"):
        network().logits(rows())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_layers": 3, "layer_norm": True, "activation": "tanh", "d_mlp": None, "d_head": None} | ALL_BIASES,
        NO_BIASES,
    ],
    ids=["defaults", "everything", "nothing"],
)
def test_like_has_the_shape_of_the_network_for_another_number_of_members(options):
    population = network(**options)
    other = population.like(5)
    assert other.n_members == 5
    assert {name: p.shape for name, p in other.named_parameters()} == {
        name: (5, *p.shape[1:]) for name, p in population.named_parameters()
    }
    twin = population.like(3).double()
    twin.load_state_dict(population.state_dict())
    assert torch.equal(twin(rows()), population(rows()))


@pytest.mark.parametrize("sizes", [[8, 8, 8], [8, 3, 5]])
def test_members_train_as_they_would_alone(sizes):
    """Several steps of AdamW, each member on rows of its own."""
    seeds = (3, 0, 7)
    tokens, labels = rows(8, constant=(1, 3), members=3), torch.arange(24).view(3, 8) % 5

    def train(trained, members):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01, weight_decay=1.0, betas=(0.9, 0.98))
        for _ in range(6):
            optimizer.zero_grad()
            logits = trained(tokens[members])
            loss = 0
            for logit, label, size in zip(logits, labels[members], [sizes[e] for e in members], strict=True):
                loss = loss + nn.functional.cross_entropy(logit[:size], label[:size])
            loss.backward()
            optimizer.step()
        return trained

    together = train(TransformerNetwork(**SIZES, generators=generators(*seeds)).double(), [0, 1, 2])
    for e, seed in enumerate(seeds):
        start = TransformerNetwork(**SIZES, generators=generators(seed)).double()
        begun = start.output.weight.clone()
        alone = train(start, [e])
        assert not torch.allclose(alone.output.weight, begun, atol=1e-3)
        for p, q in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("members", [1, 3, 1000])
def test_rows_at_once_are_fewer_for_more_members_and_never_none(members):
    made = TransformerNetwork(3, 2, 2, [torch.Generator()] * members, d_model=4, n_heads=1, d_mlp=512)
    assert made.rows_at_once == max(16, 2048 // members)


# Other ways of running it


@pytest.mark.parametrize("n_layers", [1, 2])
def test_bfloat16_runs(n_layers):
    population, tokens = network(n_layers=n_layers, layer_norm=True), rows(constant=(1,))
    exact = population(tokens)
    logits = population.bfloat16()(tokens)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.double(), exact, rtol=0.05, atol=0.1)
    logits.sum().backward()


@pytest.mark.parametrize(
    ("n_layers", "shared", "backend"),
    [
        (1, True, "aot_eager"),
        (1, False, "aot_eager"),
        (2, True, "aot_eager"),
        pytest.param(
            1,
            True,
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),  # torch, of itself
                pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"),
            ],
        ),
    ],
)
def test_compiled_it_is_the_same(n_layers, shared, backend):
    torch.compiler.reset()
    population = network(n_layers=n_layers, layer_norm=n_layers == 2)
    tokens = rows(12, constant=(1, 3), members=None if shared else 3)
    compiled = torch.compile(population, backend=backend, fullgraph=True)
    found = []
    for run in (population, compiled):
        population.zero_grad()
        logits = run(tokens)
        logits.sin().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in population.parameters())])
    for eager, other in zip(*found, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-9, atol=1e-10)
    torch.compiler.reset()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_single_row_compiles_too(n_layers):
    torch.compiler.reset()
    population = network(n_layers=n_layers)
    compiled = torch.compile(population, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows(1)), population(rows(1)), rtol=1e-10, atol=1e-11)
    torch.compiler.reset()


# What it refuses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_rows_that_are_no_tokens_are_refused(dtype):
    for look in (network(), network().check_inputs, network(n_layers=2)):
        with pytest.raises(ValueError, match=f"expected rows of tokens, integers, got inputs of type {dtype}"):
            look(torch.zeros(3, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(4,), (9, 5), (9, 3), (3, 9, 5), (2, 9, 4), (1, 9, 4), (1, 3, 9, 4), (), (9, 0)])
@pytest.mark.parametrize("cache", [False, True])
def test_rows_of_another_shape_or_number_of_members_are_refused(shape, cache):
    message = r"expected inputs \(B, 4\) shared by all members or \(E, B, 4\) with E = 3, got"
    tokens = torch.zeros(shape, dtype=torch.int64)
    population = network()
    with pytest.raises(ValueError, match=message) as error:
        population(tokens, cache=cache)
    assert str(error.value).endswith(str(tuple(shape)))
    with pytest.raises(ValueError, match=message):
        population.check_inputs(tokens)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("token", "says"), [(7, "0 to 7"), (-1, "-1 to 6"), (99, "0 to 99")])
def test_tokens_out_of_range_are_refused(token, says, shared):
    tokens = rows(20, members=None if shared else 3)
    population = network()
    population.check_inputs(tokens)
    tokens[..., -1, 2] = token
    with pytest.raises(ValueError, match=rf"expected tokens in \[0, 7\), .* was built, got {says}"):
        population.check_inputs(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({name: size}, f"{name}: expected at least 1, got {size}")
            for name in ("n_tokens", "n_positions", "n_outputs", "d_model", "n_heads", "d_head", "d_mlp", "n_layers")
            for size in (0, -1)
        ),
        ({"d_head": None, "n_heads": 4}, "d_model: 6 cannot be divided among 4 heads; change one, or give d_head"),
        ({"seeds": ()}, "generators: expected one a member, got none"),
        ({"activation": "Relu"}, "activation: expected one of relu, square, gelu, tanh, identity, got 'Relu'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


# TransformerLens

EXPORTED = {
    "default": {},
    "depth 2, LayerNorm, all biases": {"n_layers": 2, "layer_norm": True, **ALL_BIASES},
    "heads of another width": {
        "n_layers": 2,
        "n_heads": 3,
        "d_head": 5,
        "d_mlp": 11,
        "activation": "gelu",
        **NO_BIASES,
    },
}


def exported(options, dtype=torch.float32):
    """The paper's sizes, biases and LayerNorms no longer where they start; tokens."""
    made = TransformerNetwork(115, 4, 113, generators(1), **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "bias" in name or "norm" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return made.to(dtype), torch.randint(115, (60, 4), generator=generator)


def lens_forward(config, w, tokens):
    """What an export means, from its config and names alone, one einsum a map."""

    def norm(name, x):
        if config["normalization_type"] is None:
            return x
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + config["eps"]).sqrt() * w[f"{name}.w"] + w[f"{name}.b"]

    n = tokens.shape[1]
    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][:n]
    for i in range(config["n_layers"]):
        layer = f"blocks.{i}"
        normed = norm(f"{layer}.ln1", x)
        q, k, v = (
            torch.einsum("bpm,hmd->bphd", normed, w[f"{layer}.attn.W_{name}"]) + w[f"{layer}.attn.b_{name}"]
            for name in "QKV"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(config["d_head"])
        scores = scores + torch.full((n, n), -math.inf, dtype=scores.dtype).triu(1)
        z = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v)
        x = x + torch.einsum("bqhd,hdm->bqm", z, w[f"{layer}.attn.W_O"]) + w[f"{layer}.attn.b_O"]
        hidden = norm(f"{layer}.ln2", x) @ w[f"{layer}.mlp.W_in"] + w[f"{layer}.mlp.b_in"]
        hidden = {"relu": torch.relu, "gelu": nn.functional.gelu}[config["act_fn"]](hidden)
        x = x + hidden @ w[f"{layer}.mlp.W_out"] + w[f"{layer}.mlp.b_out"]
    return norm("ln_final", x) @ w["unembed.W_U"] + w["unembed.b_U"]


@pytest.mark.parametrize("options", EXPORTED.values(), ids=EXPORTED)
def test_what_is_exported_means_the_same_network(options):
    made, tokens = exported(options, torch.float64)
    config, weights = made.to_transformer_lens()
    found = lens_forward(config, weights, tokens)
    torch.testing.assert_close(found, Textbook(made, 0)(tokens)[0], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found[:, -1], made.logits(tokens), rtol=1e-10, atol=1e-11)


def test_what_is_exported_has_the_names_and_shapes_of_the_other_side():
    made = TransformerNetwork(**SIZES, generators=generators(0), layer_norm=True)
    config, weights = made.to_transformer_lens()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "embed.W_E": (7, 6),
        "pos_embed.W_pos": (4, 6),
        "blocks.0.ln1.w": (6,),
        "blocks.0.ln1.b": (6,),
        "blocks.0.ln2.w": (6,),
        "blocks.0.ln2.b": (6,),
        "blocks.0.attn.W_O": (2, 4, 6),
        "blocks.0.attn.b_O": (6,),
        "blocks.0.mlp.W_in": (6, 9),
        "blocks.0.mlp.b_in": (9,),
        "blocks.0.mlp.W_out": (9, 6),
        "blocks.0.mlp.b_out": (6,),
        "blocks.0.attn.W_Q": (2, 6, 4),
        "blocks.0.attn.b_Q": (2, 4),
        "blocks.0.attn.W_K": (2, 6, 4),
        "blocks.0.attn.b_K": (2, 4),
        "blocks.0.attn.W_V": (2, 6, 4),
        "blocks.0.attn.b_V": (2, 4),
        "ln_final.w": (6,),
        "ln_final.b": (6,),
        "unembed.W_U": (6, 5),
        "unembed.b_U": (5,),
    }
    assert config == {
        "n_layers": 1,
        "d_model": 6,
        "n_ctx": 4,
        "d_head": 4,
        "n_heads": 2,
        "d_mlp": 9,
        "d_vocab": 7,
        "d_vocab_out": 5,
        "act_fn": "relu",
        "normalization_type": "LN",
        "eps": 1e-5,
        "positional_embedding_type": "standard",
        "attention_dir": "causal",
        "init_weights": False,
        "dtype": torch.float32,
        "device": "cpu",
    }


def test_what_is_exported_is_a_copy():
    made = network((0,))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    weights = made.to_transformer_lens()[1]
    for value in weights.values():
        assert not value.requires_grad
        assert value.is_contiguous()
        value.zero_()
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_one_member_can_be_exported():
    with pytest.raises(ValueError, match=r"3 members; choose one by member\(index\).to_transformer_lens\(\)"):
        network().to_transformer_lens()
    network().member(2).to_transformer_lens()


@pytest.mark.parametrize("activation", ["square", "tanh", "identity"])
def test_an_activation_that_the_other_side_has_not_is_refused(activation):
    with pytest.raises(ValueError, match=f"TransformerLens has relu and gelu, and no activation '{activation}'"):
        network((0,), activation=activation).to_transformer_lens()


def loaded_by_transformer_lens(config, weights):
    """As the docstring of to_transformer_lens says, for the version that is here; nothing may be left over."""
    if int(version("transformer_lens").split(".")[0]) < 4:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        lens = HookedTransformer(HookedTransformerConfig(**config))
        missing, unexpected = lens.load_state_dict(weights, strict=False)
        assert not unexpected
        assert {name.split(".")[-1] for name in missing} <= {"mask", "IGNORE"}
        return lens
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    lens = TransformerBridge.boot_native(config, device=config["device"], dtype=config["dtype"])
    lens.load_state_dict(convert_tl_checkpoint(weights, lens.cfg))
    return lens


@pytest.mark.filterwarnings("ignore")  # whatever TransformerLens and what it imports have to say
@pytest.mark.parametrize("options", EXPORTED.values(), ids=EXPORTED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_transformer_lens_computes_the_same_logits(options, dtype, tolerance):
    pytest.importorskip("transformer_lens")
    made, tokens = exported(options, dtype)
    lens = loaded_by_transformer_lens(*made.to_transformer_lens())
    with torch.no_grad():
        found, expected = lens(tokens)[:, -1], made.logits(tokens)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
