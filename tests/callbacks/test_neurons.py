"""Subnetworks by sums over neurons, against copies of the network from which neurons were cut out by hand.

A copy's next layer has zeros in the columns of the neurons that are cut out: nothing is hooked, added up or masked.
"""

import copy
import math
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from grok_callbacks import neurons as module_under_test
from grok_callbacks.neurons import CHECKED_ROWS, Neurons, tell_method
from grok_lightning.modules import MLP

NAN = math.nan


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scrambled(module, seed=0, gain=1.0):
    """The same module, float64, in eval mode, with weights and biases all over the place."""
    module = module.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(gain * draw(*parameter.shape, seed=100 * seed + i))
    return module


class TwoLayers(LightningModule):
    """What the other modules here vary: two layers, and what is done between and after them."""

    def __init__(self, outputs=1, width=7, inputs=5, activation=torch.relu, output_bias=True, drop=0.0):
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(width, outputs, bias=output_bias)
        self.activation = activation
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.after(self.fc2(self.drop(self.activation(self.fc1(x)))), x)

    def after(self, z, x):
        return z


class WithoutOutputAxis(TwoLayers):
    def after(self, z, x):
        return z.squeeze(-1)


class Residual(TwoLayers):
    """Logits have a part that passes the neurons by, and differs from row to row."""

    def after(self, z, x):
        return z + x[..., :1] * 0.7 - x[..., 1:2].square()


class ResidualOnRareRows(TwoLayers):
    """As on the first rows there is no such part."""

    def after(self, z, x):
        return z + torch.where(x[..., :1] > 50, x[..., :1], 0)


class Deeper(TwoLayers):
    """Linear layers follow the next layer."""

    def __init__(self, **options):
        super().__init__(outputs=4, **options)
        self.fc3 = nn.Linear(4, 3, bias=False)
        self.fc4 = nn.Linear(3, 2)

    def after(self, z, x):
        return self.fc4(self.fc3(z))


class ReluAfter(TwoLayers):
    """Not a sum over neurons. Without biases it is at least homogeneous: the whole network *is* its slope times its
    activations, on every row, and only a network without some neurons shows that it is not linear."""

    def __init__(self, outputs=2, bias=True, **options):
        super().__init__(outputs=6, output_bias=bias, **options)
        self.fc3 = nn.Linear(6, outputs, bias=bias)

    def after(self, z, x):
        return self.fc3(torch.relu(z))


class NormAfter(TwoLayers):
    def __init__(self, **options):
        super().__init__(outputs=6, **options)
        self.norm = nn.LayerNorm(6)
        self.fc3 = nn.Linear(6, 2)

    def after(self, z, x):
        return self.fc3(self.norm(z))


class SaturatesOnRareRows(TwoLayers):
    """Linear wherever logits are small."""

    def after(self, z, x):
        return z.clamp(-200, 200)


class Attention(LightningModule):
    """A small transformer block: attention, then the two layers at every position; logits of the last one."""

    def __init__(self, read_all=False, width=7):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.fc1 = nn.Linear(4, width)
        self.fc2 = nn.Linear(width, 4)
        self.head = nn.Linear(4, 3)
        self.read_all = read_all

    def forward(self, tokens):
        x = self.embed(tokens)
        weights = torch.softmax(self.mix(x) @ x.mT, dim=-1)
        x = x + weights @ x
        if not self.read_all:
            x = x[:, -1]  # the neurons see one position a row
        x = x + self.fc2(torch.relu(self.fc1(x)))
        if self.read_all:
            x = x.mean(dim=1)
        return self.head(x)


class FoldedPositions(TwoLayers):
    """More than one position a row, and the axis of positions folded into that of rows."""

    def forward(self, x):
        self.calls += 1
        rows, positions = x.shape[:2]
        z = self.fc2(self.activation(self.fc1(x.flatten(0, 1))))
        return z.unflatten(0, (rows, positions)).mean(dim=1)


class CalledTwice(TwoLayers):
    """One layer reads two sets of activations."""

    def forward(self, x):
        self.calls += 1
        return self.fc2(torch.relu(self.fc1(x))) - 0.5 * self.fc2(torch.tanh(self.fc1(x)))


def cut(module, next_layer, keep):
    """A copy of the module without the neurons that are not in ``keep (E, neuron)``."""
    other = copy.deepcopy(module)
    weight = other.get_submodule(next_layer).weight
    with torch.no_grad():
        keep = keep.unsqueeze(1) if weight.ndim == 3 else keep
        weight.copy_(torch.where(keep, weight, 0))
    return other


def predict(row):
    if any(math.isnan(logit) for logit in row):
        return NAN
    if len(row) == 1:
        return (row[0] > 0) - (row[0] < 0)
    return row.index(max(row))


def predicted(module, inputs, members):
    """``[member][row]``, by a plain forward pass."""
    logits = module(inputs)
    if members is None:
        logits = logits.unsqueeze(0)
    if logits.ndim == 2:
        logits = logits.unsqueeze(-1)
    return [[predict(row) for row in member] for member in logits.tolist()], logits.shape[-1]


def expected(module, layer, next_layer, inputs, targets):
    """Sizes by either rule, ``[member]``, and rankings, by one cut-out copy for every size."""
    members = getattr(module, "n_members", None)
    weight = module.get_submodule(layer).weight.detach()
    weight = weight if weight.ndim == 3 else weight.unsqueeze(0)
    norms = [[math.sqrt(math.fsum(w * w for w in neuron)) for neuron in member] for member in weight.tolist()]
    ranks = [
        sorted(range(len(n)), key=lambda j, n=n: (math.isnan(n[j]), -n[j] if n[j] == n[j] else 0, j)) for n in norms
    ]
    width = len(norms[0])
    at = []
    for size in range(width + 1):
        keep = torch.tensor([[j in rank[:size] for j in range(width)] for rank in ranks])
        found, n_outputs = predicted(cut(module, next_layer, keep), inputs, members)
        at.append(found)
    labels = targets.tolist() if targets.ndim == 2 else [targets.tolist()] * len(ranks)
    if n_outputs == 1:
        labels = [[1 if label > 0 else -1 for label in member] for member in labels]
    by_predictions, by_accuracy = [], []
    for e, label in enumerate(labels):
        full, right = at[-1][e], [sum(p == y for p, y in zip(found[e], label, strict=True)) for found in at]
        undefined = any(math.isnan(p) for p in full)
        by_predictions.append(NAN if undefined else [found[e] == full for found in at].index(True))
        by_accuracy.append(NAN if undefined else right.index(right[-1]))
    return by_predictions, by_accuracy, ranks


def some_sets(members, width, count=6, seed=9):
    sets = torch.rand(members, count, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    sets[:, 0], sets[:, 1] = True, False
    return sets


@torch.no_grad()
def check_sizes(module, inputs, targets, linear, layer="fc1", next_layer="fc2", network=None):
    """Sizes and rankings are those of cut-out copies; returns the sizes by predictions."""
    by_predictions, by_accuracy, ranks = expected(module, layer, next_layer, inputs, targets)
    neurons = Neurons(module, layer, next_layer, network)
    sizes, order = neurons.sizes(inputs, targets)
    assert order.tolist() == ranks
    assert sizes.by_predictions.tolist() == pytest.approx(by_predictions, nan_ok=True)
    assert sizes.by_accuracy.tolist() == pytest.approx(by_accuracy, nan_ok=True)
    assert neurons.linear is linear
    return by_predictions


def check(module, inputs, targets, linear, layer="fc1", next_layer="fc2", network=None):
    """Sizes, rankings and subsets are those of cut-out copies; returns the sizes by predictions."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check_sizes(module, inputs, targets, linear, layer, next_layer, network)
    by_predictions, _, ranks = expected(module, layer, next_layer, inputs, targets)
    neurons = Neurons(module, layer, next_layer, network)
    sets = some_sets(len(ranks), len(ranks[0]))
    found = neurons.predictions(inputs, targets, sets)
    assert neurons.linear is linear
    for s in range(sets.shape[1]):
        by_hand, _ = predicted(cut(module, next_layer, sets[:, s]), inputs, getattr(module, "n_members", None))
        assert found[:, s].tolist() == [pytest.approx(member, nan_ok=True) for member in by_hand]

    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())
    return by_predictions


def rows(n=40, inputs=5, seed=3, classes=2):
    targets = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    return draw(n, inputs, seed=seed), targets


# Sums over neurons.

LINEAR = {
    "relu": TwoLayers,
    "tanh": lambda: TwoLayers(activation=torch.tanh),
    "square": lambda: TwoLayers(activation=torch.square),
    "no output bias": lambda: TwoLayers(output_bias=False),
    "three classes": lambda: TwoLayers(outputs=3),
    "dropout": lambda: TwoLayers(outputs=2, drop=0.5),
    "one neuron": lambda: TwoLayers(width=1),
    "no output axis": WithoutOutputAxis,
    "residual": Residual,
    "residual, classes": lambda: Residual(outputs=3),
    "linear layers after": Deeper,
    "transformer, one position": Attention,
}


@pytest.mark.parametrize("kind", LINEAR)
def test_where_logits_are_sums_they_give_every_subnetwork(kind):
    sizes = set()
    for seed, n in enumerate((40, 40, 6, 5, 4, 3)):
        module = scrambled(LINEAR[kind](), seed)
        inputs, targets = rows(n)
        if kind.startswith("transformer"):
            inputs = torch.randint(6, (n, 3), generator=torch.Generator().manual_seed(seed))
        sizes |= set(check(module, inputs, targets, linear=True))
    assert len(sizes) > 1 or kind == "one neuron"


@pytest.mark.parametrize("n", [1, 2, CHECKED_ROWS - 1, CHECKED_ROWS, CHECKED_ROWS + 1, 3 * CHECKED_ROWS])
def test_any_number_of_rows_will_do(n):
    check(scrambled(Residual()), *rows(n), linear=True)


@pytest.mark.parametrize("at_once", [1, 7 * 3, 7 * 16, 7 * 100])
@pytest.mark.parametrize("kind", [Residual, TwoLayers])
def test_rows_may_be_passed_in_pieces(monkeypatch, at_once, kind):
    monkeypatch.setattr(module_under_test, "AT_ONCE", at_once)
    module, (inputs, targets) = scrambled(kind()), rows(100)
    check(module, inputs, targets, linear=True)


def test_the_cost_does_not_grow_with_the_number_of_neurons():
    calls = []
    for width in (3, 30):
        module = scrambled(TwoLayers(width=width))
        with torch.no_grad():
            Neurons(module, "fc1", "fc2").sizes(*rows())
        calls.append(module.calls)
    assert max(calls) <= 13


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("options", [{}, {"output_bias": True}, {"activation": "tanh"}, {"bias": False}])
@pytest.mark.parametrize("shared", [True, False])
def test_our_populations_have_subnetworks_of_their_own(outputs, options, shared):
    found = []
    for seed, n in enumerate((30, 8, 5, 4)):
        module = MLP(5, outputs, hidden=[8], members={"seed": [0, 1]}, **options)
        module.configure_model()
        module = scrambled(module, seed)
        pairs = [rows(n, classes=max(2, outputs), seed=s) for s in (3, 4)]
        inputs, targets = pairs[0] if shared else (torch.stack(t) for t in zip(*pairs, strict=True))
        found.append(check(module, inputs, targets, True, "network.hidden.0", "network.output"))
    assert any(a != b for a, b in found)


def test_the_first_of_two_hidden_layers_of_ours_is_no_sum():
    module = MLP(5, 1, hidden=[6, 5], members={"seed": [0, 1]})
    module.configure_model()
    check(scrambled(module), *rows(), False, "network.hidden.0", "network.hidden.1")
    check(scrambled(module), *rows(), True, "network.hidden.1", "network.output")


class Wrapped(LightningModule):
    """Without a forward pass of its own."""

    def __init__(self, n_members=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def test_the_network_may_be_a_part_of_the_module():
    module = scrambled(Wrapped())
    with torch.no_grad():
        inputs, targets = rows(classes=3)
        neurons = Neurons(module, "encoder.0", "encoder.3", "encoder")
        sizes, _ = neurons.sizes(inputs, targets)
        bare = scrambled(TwoLayers(outputs=3, width=6))
        bare.load_state_dict(
            {
                f"fc{i}.{kind}": getattr(module.encoder[j], kind)
                for i, j in [(1, 0), (2, 3)]
                for kind in ("weight", "bias")
            }
        )
        assert sizes.by_predictions.tolist() == expected(bare, "fc1", "fc2", inputs, targets)[0]


class PlainOfOne(Wrapped):
    """A plain network in a module with a member axis, as our modules take it."""

    n_members = 1

    def forward(self, x):
        return self.encoder(x).unsqueeze(0)


@pytest.mark.parametrize("network", [None, "encoder"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_plain_network_is_a_population_of_one(network, shared):
    module = scrambled(PlainOfOne())
    inputs, targets = rows(classes=3)
    by_predictions, by_accuracy, ranks = expected(module, "encoder.0", "encoder.3", inputs, targets)
    sets = some_sets(1, 6)
    with torch.no_grad():
        given = (inputs, targets) if shared else (inputs.unsqueeze(0), targets.unsqueeze(0))
        neurons = Neurons(module, "encoder.0", "encoder.3", network)
        sizes, order = neurons.sizes(*given)
        found = neurons.predictions(*given, sets)
    assert order.tolist() == ranks
    assert sizes.by_predictions.tolist() == by_predictions
    assert sizes.by_accuracy.tolist() == by_accuracy
    for s in range(sets.shape[1]):
        assert found[:, s].tolist() == predicted(cut(module, "encoder.3", sets[:, s]), inputs, 1)[0]


# Where they are no sums.

NOT_LINEAR = {
    "relu after": ReluAfter,
    "relu after, one output": lambda: ReluAfter(outputs=1),
    "relu after, no biases": lambda: ReluAfter(bias=False),
    "relu after, no biases, one output": lambda: ReluAfter(bias=False, outputs=1),
    "normalised after": NormAfter,
    "one layer called twice": CalledTwice,
}


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_where_logits_are_no_sums_every_subnetwork_is_run(kind):
    for seed in range(3):
        check(scrambled(NOT_LINEAR[kind](), seed), *rows(), linear=False)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("copies", [1, 7, 2 * CHECKED_ROWS])
def test_a_homogeneous_network_gives_itself_away_without_half_of_its_neurons(outputs, copies):
    """On rows of one kind its logits *are* the slope times the activations."""
    for seed in range(3):
        inputs, targets = rows(1, seed=seed)
        module = scrambled(ReluAfter(bias=False, outputs=outputs), seed)
        check(module, inputs.repeat(copies, 1), targets.repeat(copies), linear=False)


@pytest.mark.parametrize("kind", ["relu after", "relu after, no biases", "normalised after"])
def test_sums_would_have_been_wrong_there(kind):
    """Sums with the slope at every single row, which the whole network, if homogeneous, cannot tell from itself."""
    differ = False
    for seed in range(10):
        module = scrambled(NOT_LINEAR[kind](), seed)
        inputs, targets = rows()
        activations = torch.relu(module.fc1(inputs)).detach().requires_grad_()
        logits = module.after(module.fc2(activations), inputs)
        slopes = [torch.autograd.grad(logits[:, c].sum(), activations, retain_graph=True)[0] for c in (0, 1)]
        with torch.no_grad():
            rest = module.after(module.fc2(torch.zeros_like(activations)), inputs)
            by_cutting, _, ranks = expected(module, "fc1", "fc2", inputs, targets)
            parts = torch.stack([slope * activations for slope in slopes], dim=-1)[:, ranks[0]].cumsum(dim=1)
            sums = torch.cat([rest.unsqueeze(1), rest.unsqueeze(1) + parts], dim=1)
            if kind == "relu after, no biases":
                torch.testing.assert_close(sums[:, -1], logits)
            agree = (sums.argmax(dim=-1) == logits.argmax(dim=-1).unsqueeze(1)).all(dim=0).tolist()
            differ |= (agree.index(True) if True in agree else -1) != by_cutting[0]
    assert differ


@pytest.mark.parametrize("positions", [1, 3])
def test_several_positions_of_a_row_are_no_sum_over_neurons(positions):
    module = scrambled(Attention(read_all=True))
    tokens = torch.randint(6, (40, positions), generator=torch.Generator().manual_seed(0))
    check(module, tokens, rows(classes=3)[1], linear=False)


@pytest.mark.parametrize("positions", [2, 3])
def test_positions_may_be_folded_into_rows(positions):
    check(scrambled(FoldedPositions(outputs=2)), draw(40, positions, 5), rows()[1], linear=False)


def rare(n, last, scale):
    """Rows of which those from ``last`` on are far larger."""
    inputs, targets = rows(n)
    inputs[last:] *= scale
    return inputs, targets


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("first", [0, CHECKED_ROWS - 1, CHECKED_ROWS, 149])
def test_a_nonlinearity_that_shows_on_rare_rows_is_seen(outputs, first):
    module = scrambled(SaturatesOnRareRows(outputs=outputs))
    check(module, *rare(150, 150, 1), linear=True)
    check(module, *rare(150, first, 1000), linear=False)


def test_a_nonlinearity_on_a_row_of_a_later_piece_is_seen(monkeypatch):
    monkeypatch.setattr(module_under_test, "AT_ONCE", 7 * 10)
    check(scrambled(SaturatesOnRareRows()), *rare(150, 149, 1000), linear=False)


def test_rows_whose_other_parts_differ_late_have_the_right_sizes():
    module = scrambled(ResidualOnRareRows())
    inputs, targets = rows(150)
    check(module, inputs, targets, linear=True)
    inputs[120:, 0] = 60
    neurons = Neurons(module, "fc1", "fc2")
    with torch.no_grad():
        by_predictions, by_accuracy, _ = expected(module, "fc1", "fc2", inputs, targets)
        sizes, _ = neurons.sizes(inputs, targets)
    assert (sizes.by_predictions.tolist(), sizes.by_accuracy.tolist()) == (by_predictions, by_accuracy)


class Gate(LightningModule):
    """One rectified unit and one linear one after the neurons, which are the inputs, scaled: ``ReLU(a) + b + c``."""

    def __init__(self, norms, gate, straight, constant):
        super().__init__()
        n = len(norms)
        self.fc1 = nn.Linear(n, n, bias=False)
        self.fc2 = nn.Linear(n, 2, bias=False)
        self.double().eval()
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor(norms).diag())
            self.fc2.weight.copy_(torch.tensor([gate, straight]))
        self.constant = constant
        self.norms = torch.tensor(norms, dtype=torch.float64)

    def forward(self, x):
        z = self.fc2(torch.relu(self.fc1(x)))
        return torch.relu(z[:, :1]) + z[:, 1:] + self.constant

    def rows(self, activations):
        inputs = torch.tensor(activations, dtype=torch.float64) / self.norms
        return inputs, torch.ones(len(inputs))


def test_a_nonlinearity_of_subnetworks_alone_on_rare_rows_is_seen():
    """The gate of the whole network is open on all rows; on a late row it is shut without the last neuron."""
    module = Gate(norms=[1.0, 3.0, 2.0], gate=[1.0, -1.0, 0.0], straight=[0.0, 0.0, 2.0], constant=-1.0)
    early, late = [[0.1, 0.0, 0.75], [0.1, 0.0, 0.0]] * (CHECKED_ROWS // 2), [[3.0, 2.0, 0.75]]
    assert check(module, *module.rows(early), linear=True) == [2]
    # Of subsets that somebody names only some are tried on some rows; the smallest one is tried on all.
    assert check_sizes(module, *module.rows(early + late), linear=False) == [2]


def test_a_nonlinearity_of_other_subnetworks_than_halves_is_seen():
    """The gate is open for the whole network and for the neurons of even and of odd number, not for the top ones."""
    module = Gate(
        norms=[3.0, 2.0, 5.0, 1.0, 4.0],
        gate=[3.0, 3.0, -2.0, -2.0, 0.0],
        straight=[0.0, 0.0, 0.0, 0.0, 3.0],
        constant=-2.5,
    )
    inputs, targets = module.rows([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    with torch.no_grad():
        sizes, _ = Neurons(module, "fc1", "fc2").sizes(inputs, targets)
    assert expected(module, "fc1", "fc2", inputs, targets)[0] == [2]
    assert sizes.by_predictions.tolist() == [2]


def test_a_population_that_is_linear_for_one_member_only_is_no_sum():
    class Members(LightningModule):
        n_members = 2

        def __init__(self):
            super().__init__()
            self.a, self.b = scrambled(TwoLayers(outputs=2), 1), scrambled(ReluAfter(), 2)
            self.fc1, self.fc2 = nn.Module(), Reads()
            self.fc1.weight = nn.Parameter(torch.stack([self.a.fc1.weight, self.b.fc1.weight]))

        def forward(self, x):
            hidden = torch.relu(torch.stack([self.a.fc1(x), self.b.fc1(x)]))
            a, b = self.fc2(hidden)
            return torch.stack([self.a.fc2(a), self.b.fc3(torch.relu(self.b.fc2(b)))])

    class Reads(nn.Module):
        def forward(self, hidden):
            return hidden

    module, (inputs, targets) = Members(), rows()
    neurons = Neurons(module, "fc1", "fc2")
    with torch.no_grad():
        sizes, _ = neurons.sizes(inputs, targets)
        alone = [expected(part, "fc1", "fc2", inputs, targets)[0][0] for part in (module.a, module.b)]
    assert not neurons.linear
    assert sizes.by_predictions.tolist() == alone


class CutsItsGraph(TwoLayers):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def test_a_model_that_lets_no_gradient_through_is_run_for_every_subnetwork():
    check(scrambled(CutsItsGraph()), *rows(), linear=False)


@pytest.mark.parametrize("kind", [TwoLayers, ReluAfter])
def test_single_precision_will_do(kind):
    """Widths at which rounding adds up; sizes by float64 on rows that are far from a tie."""
    module = scrambled(kind(width=300, inputs=20), gain=0.3)
    inputs, targets = rows(100, 20)
    by_predictions, _, _ = expected(module, "fc1", "fc2", inputs, targets)
    single = copy.deepcopy(module).float()
    neurons = Neurons(single, "fc1", "fc2")
    with torch.no_grad():
        sizes, _ = neurons.sizes(inputs.float(), targets)
    assert neurons.linear is (kind is TwoLayers)
    assert sizes.by_predictions.tolist() == by_predictions


# Networks that diverged.


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("where", ["network.hidden.0", "network.output"])
def test_a_member_that_diverged_leaves_the_others_alone(bad, outputs, where):
    module = MLP(5, outputs, hidden=[8], output_bias=True, members={"seed": [0, 1]})
    module.configure_model()
    module = scrambled(module)
    inputs, targets = rows(classes=max(2, outputs))
    with torch.no_grad():
        alone = expected(module, "network.hidden.0", "network.output", inputs, targets)[0][1]
        module.get_submodule(where).weight[0].fill_(bad)
        neurons = Neurons(module, "network.hidden.0", "network.output")
        sizes, order = neurons.sizes(inputs, targets)
        logits = module(inputs)
    assert sizes.by_predictions[1] == alone
    assert sorted(order[0].tolist()) == list(range(8))
    if logits[0].isnan().any():
        assert sizes.by_predictions[0].isnan()
        assert sizes.by_accuracy[0].isnan()
    else:
        assert bool(sizes.by_predictions[0].isfinite())
    assert logits[0].isnan().any() or not math.isnan(bad)


def test_all_members_may_have_diverged():
    module = scrambled(TwoLayers())
    with torch.no_grad():
        module.fc1.weight.fill_(NAN)
        sizes, _ = Neurons(module, "fc1", "fc2").sizes(*rows())
        found = Neurons(module, "fc1", "fc2").predictions(*rows(), torch.ones(1, 1, 7, dtype=torch.bool))
    assert torch.stack(sizes).isnan().all()
    assert found.isnan().all()


# Names and models that do not serve.


class NotCalled(TwoLayers):
    def forward(self, x):
        return nn.functional.linear(torch.relu(self.fc1(x)), self.fc2.weight)


class CalledByKeyword(TwoLayers):
    """As several libraries call their layers."""

    def forward(self, x):
        return self.fc2(input=torch.relu(self.fc1(x)))


class NotUsed(TwoLayers):
    """The layer is called, and what it says reaches no logit."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 1)

    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        self.aside = self.fc2(hidden)
        return self.head(hidden)


class OfThreeAxes(TwoLayers):
    def after(self, z, x):
        return z.unsqueeze(0).unsqueeze(0)


def ask(module, layer="fc1", next_layer="fc2", network=None):
    with torch.no_grad():
        neurons = Neurons(module, layer, next_layer, network)
        return [neurons.sizes(*rows()), neurons.predictions(*rows(), torch.ones(1, 1, neurons.n_neurons).bool())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "fc"}, r"layer: the model has no 'fc'; it has fc1, fc2"),
        ({"next_layer": "fc9"}, r"next_layer: the model has no 'fc9'; it has fc1, fc2"),
        ({"network": "net"}, r"network: the model has no 'net'; it has fc1, fc2"),
        ({"layer": "drop"}, r"layer: 'drop' has no weight"),
    ],
)
def test_names_that_lead_nowhere_are_answered_with_those_that_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        ask(TwoLayers().double(), **arguments)


def test_a_next_layer_that_is_not_called_is_refused():
    with pytest.raises(ValueError, match=r"next_layer: .*does not call it.*fc1 and fc2"):
        ask(scrambled(NotCalled()))


def test_a_layer_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"next_layer: expected it to read 7 neurons .* got an input of \(\d+, 5\)"):
        ask(scrambled(TwoLayers()), next_layer="fc1")
    with pytest.raises(ValueError, match=r"next_layer: expected it to read 1 neurons .*fc2 and fc2"):
        ask(scrambled(TwoLayers()), layer="fc2")


def test_logits_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r"network: expected logits \(B, C\), got \(1, 1, \d+, 1\)"):
        ask(scrambled(OfThreeAxes()))


def test_a_layer_that_reaches_no_logit_leaves_nothing_to_find():
    """Without any neuron the logits are what they were."""
    sizes, order = ask(scrambled(NotUsed()))[0]
    assert sizes == (0, 0)
    assert order.shape == (1, 7)


def test_a_layer_may_be_called_by_keyword():
    (sizes, _), _ = ask(scrambled(CalledByKeyword()))
    assert sizes.by_predictions.tolist() == expected(scrambled(TwoLayers()), "fc1", "fc2", *rows())[0]


def test_hooks_are_taken_off_when_the_model_fails():
    class Fails(TwoLayers):
        def after(self, z, x):
            raise RuntimeError("model failed")

    module = scrambled(Fails())
    with pytest.raises(RuntimeError, match="model failed"):
        ask(module)
    assert not any(part._forward_pre_hooks for part in module.modules())


class Compiled(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.encoder(x)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_network_has_the_same_subnetworks(called_before):
    """Also after it has been called: a compiled network does not look for new hooks."""
    inputs, targets = rows(classes=3)
    module = scrambled(Compiled())
    sizes = expected(module, "encoder.0", "encoder.2", inputs, targets)[0]
    module.encoder = torch.compile(module.encoder, backend="eager")
    if called_before:
        module(inputs).sum().backward()
        with torch.no_grad():
            module(inputs)
    found = ask_of(module, inputs, targets)
    assert found == sizes
    module.zero_grad()
    assert module(inputs).shape == (40, 3)  # and goes on working
    torch.compiler.reset()


def ask_of(module, inputs, targets):
    with torch.no_grad():
        sizes, _ = Neurons(module, "encoder.0", "encoder.2").sizes(inputs, targets)
    return sizes.by_predictions.tolist()


# What neurons add to the logits, and the last of several positions.


class AtEveryPosition(Attention):
    """Logits ``(B, T, C)``."""

    def forward(self, tokens):
        x = self.embed(tokens)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = torch.softmax((self.mix(x) @ x.mT).where(causal, -torch.inf), dim=-1)
        x = x + weights @ x
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


class AtTheLast(AtEveryPosition):
    """The same logits of the last position alone, where neurons are computed at that position alone."""

    def forward(self, tokens):
        x = self.embed(tokens)
        weights = torch.softmax(self.mix(x[:, -1:]) @ x.mT, dim=-1)
        x = x[:, -1] + (weights @ x)[:, 0]
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


def tokens(n=40, length=3):
    return torch.randint(6, (n, length), generator=torch.Generator().manual_seed(0))


def readout_of(module, inputs, targets, **options):
    neurons = Neurons(module, "fc1", "fc2", **options)
    with torch.no_grad():
        return neurons.readout(inputs, targets), neurons


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_the_readout_is_the_weight_of_the_next_layer(outputs):
    module = scrambled(TwoLayers(outputs=outputs))
    found, neurons = readout_of(module, *rows())
    torch.testing.assert_close(found, module.fc2.weight.detach().unsqueeze(0))
    assert neurons.linear


def test_the_readout_goes_through_all_that_is_linear():
    module = scrambled(Attention())
    found, _ = readout_of(module, tokens(), torch.zeros(40))
    torch.testing.assert_close(found[0], (module.head.weight @ module.fc2.weight).detach())


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_members_have_readouts_of_their_own(seeds):
    module = MLP(5, 3, hidden=[7], members={"seed": seeds})
    module.configure_model()
    scrambled(module)
    neurons = Neurons(module, "network.hidden.0", "network.output", at_last_position=True)
    with torch.no_grad():
        found = neurons.readout(draw(40, 5), torch.zeros(40))
        activations, logits = neurons.look(draw(40, 5))
        torch.testing.assert_close(logits, module(draw(40, 5)))
    torch.testing.assert_close(found, module.network.output.weight.detach())
    torch.testing.assert_close(activations @ found.mT, logits)


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_without_linearity_there_is_no_readout(kind):
    found, neurons = readout_of(scrambled(NOT_LINEAR[kind]()), *rows())
    assert found is None
    assert not neurons.linear


def test_what_is_read_at_the_last_of_all_positions_is_what_is_computed_there_alone():
    every, last = scrambled(AtEveryPosition()), scrambled(AtTheLast())
    inputs, targets = tokens(), rows(classes=3)[1]
    kept = [Neurons(module, "fc1", "fc2", at_last_position=True) for module in (every, last)]
    with torch.no_grad():
        for one, other in zip(*[neurons.look(inputs) for neurons in kept], strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(*[neurons.readout(inputs, targets) for neurons in kept])
        sets = draw(1, 4, 7) > 0
        assert torch.equal(*[neurons.predictions(inputs, targets, sets) for neurons in kept])
        found = [neurons.sizes(inputs, targets)[0].by_predictions.tolist() for neurons in kept]
    assert found[0] == found[1] == expected(last, "fc1", "fc2", inputs, targets)[0]
    assert all(neurons.linear for neurons in kept)


def test_unless_asked_for_logits_of_every_position_are_refused():
    neurons = Neurons(scrambled(AtEveryPosition()), "fc1", "fc2")
    with torch.no_grad(), pytest.raises(ValueError, match=r"expected logits \(B, C\), got \(40, 3, 3\)"):
        neurons.look(tokens())


# What is told.


def test_the_method_is_told_and_the_slow_one_warned_about_once():
    linear, slow = Neurons(TwoLayers(), "fc1", "fc2"), Neurons(TwoLayers(), "fc1", "fc2")
    slow.linear = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tell_method(linear, "") == "sums over neurons"
        assert tell_method(linear, "masked forward passes") == "masked forward passes"
        assert tell_method(slow, "masked forward passes") == "masked forward passes"
    for told in ("", "sums over neurons"):
        with pytest.warns(UserWarning, match="not sums over the neurons between fc1 and fc2"):
            assert tell_method(slow, told) == "masked forward passes"
