"""Made-up records with the shape of a grokking run, for tests of what reads records."""

import numpy as np
import xarray as xr

MEMORISED = np.array([27, 20, 38, 21, 35])
GENERALISED = np.array([125, 174, 118, 140, 123])
STEPS_PER_EPOCH = 32
EVENTS = ["memorised", "generalised", "forgotten"]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def curves(epochs, memorised, generalised, coordinates, *, noise=0.01, seed=0):
    """Dataset `loss`, `accuracy` over (split, step, member): the order in which a run writes them."""
    rng = np.random.default_rng(seed)
    t = np.arange(epochs + 1)[:, None]
    train = 0.5 + 0.5 * sigmoid((t - 0.75 * memorised) / (0.07 * memorised))
    train -= 0.06 * np.exp(-(((t - 1.8 * memorised) / (0.5 * memorised)) ** 2)) * (t > memorised)
    held = 0.5 + 0.5 * sigmoid((t - 0.92 * generalised) / (0.02 * generalised))
    wobble = noise * rng.standard_normal((2, epochs + 1, len(memorised)))
    accuracy = np.clip(np.stack([train, held]) + wobble * (np.stack([train, held]) < 0.995), 0, 1)
    # Hinge loss: exactly 0 at the end of training.
    train_loss = np.maximum(
        0, 1.05 * sigmoid((0.8 * memorised - t) / (0.2 * memorised)) + 0.15 * (1 - held) * 2 - 0.002
    )
    held_loss = 1 + 0.6 * sigmoid((t - memorised) / 8) - 1.55 * sigmoid((t - 0.95 * generalised) / (0.08 * generalised))
    loss = np.stack([train_loss, np.maximum(held_loss, 0.01)]) * (1 + 3 * wobble)
    dims = ("split", "step", "member")
    return xr.Dataset(
        {"loss": (dims, np.maximum(loss, 0)), "accuracy": (dims, accuracy)},
        coords=_coordinates(len(memorised), coordinates)
        | {"step": np.arange(epochs + 1) * STEPS_PER_EPOCH, "split": ["train", "held_out"]},
        attrs={"kind": "LearningCurves"},
    )


def _coordinates(n, coordinates):
    return {"member": np.arange(n)} | {name: ("member", values) for name, values in coordinates.items()}


def onsets(memorised, generalised, last_step, coordinates):
    """Dataset of onsets in steps; NaN = not happened."""
    step = np.stack([memorised, generalised, np.full(len(memorised), np.nan)]).astype(float)
    dims = ("event", "member")
    return xr.Dataset(
        {
            "step": (dims, step),
            "confirmed_at": (dims, step),
            "last_step": (dims, np.full(step.shape, float(last_step))),
            "resolution": (dims, np.where(np.isnan(step), np.nan, float(STEPS_PER_EPOCH))),
        },
        coords=_coordinates(len(memorised), coordinates) | {"event": EVENTS},
        attrs={"kind": "Onset", "memorised_above": 0.98},
    )


def neuron_norms(epochs, memorised, generalised, coordinates, *, neurons=200, every=5, seed=0):
    """Dataset `norm`; neuron 3 is planted as dominant at memorisation, neuron 7 (and some more) at the end."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, epochs + 1, every)[:, None, None]
    n = len(memorised)
    start = 0.577 * (1 + 0.06 * rng.standard_normal((1, n, neurons)))
    norm = start * np.exp(-t / (70 + 10 * rng.random((1, n, neurons)))) + 0.005
    bump = np.exp(-(((t[..., 0] - memorised) / memorised) ** 2))
    norm[:, :, 3] += 0.3 * bump
    winners = [7, *range(20, 27)]
    grown = sigmoid((t - 0.8 * np.asarray(generalised)[None, :, None]) / 15)
    norm[:, :, winners] += grown * np.linspace(1.5, 1.0, len(winners))
    return xr.Dataset(
        {"norm": (("step", "member", "neuron"), norm)},
        coords=_coordinates(n, coordinates) | {"step": t.ravel() * STEPS_PER_EPOCH},
        attrs={"kind": "NeuronNormTracker", "layer": "network.fc1", "weights": "incoming"},
    )


RULES = ["predictions", "accuracy"]
SETS = ["generalizing", "complementary", "control"]
BY = 0.87  # Of the epoch of generalisation: where the fall of the size has its middle.


def sparse_subnetwork(epochs, memorised, generalised, coordinates, *, neurons=200, every=5, seed=0):
    """Dataset `size`, `active`: all neurons but a few at first, then six to nine of them, which go up and down."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, epochs + 1, every)[:, None]
    n = len(memorised)
    fallen = sigmoid((t - BY * np.asarray(generalised)) / (0.04 * np.asarray(generalised)))
    few = 6 + rng.integers(0, 4, (len(t), n)) + 8 * (rng.random((len(t), n)) < 0.07)
    by_predictions = np.round(np.exp((1 - fallen) * np.log(0.99 * neurons) + fallen * np.log(few)))
    # Before memorisation a few neurons have the accuracy of the whole network by luck.
    lucky = (t < np.asarray(memorised)) * (rng.random((len(t), n)) < 0.6)
    by_accuracy = np.round(np.where(lucky, rng.integers(5, 60, (len(t), n)), 1 + (by_predictions - 1) * 0.6))
    by_accuracy = np.where(fallen > 0.99, by_predictions, by_accuracy)
    order = np.stack([rng.permutation(neurons) for _ in range(n)])
    active = order[None] < by_predictions[:, :, None]
    return xr.Dataset(
        {
            "size": (("step", "member", "rule"), np.stack([by_predictions, by_accuracy], axis=-1)),
            "active": (("step", "member", "neuron"), active),
        },
        coords=_coordinates(n, coordinates) | {"step": t.ravel() * STEPS_PER_EPOCH, "rule": RULES},
        attrs={"kind": "SparseSubnetworkExtractor", "layer": "network.fc1", "rule": "predictions"},
    )


def subnetworks(epochs, memorised, generalised, coordinates, *, neurons=200, every=5, seed=0):
    """Dataset of three sets: one grows and takes over, the others decay; the sizes are 7, 8, 7, 9, 7, ..."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, epochs + 1, every)[:, None]
    n = len(memorised)
    at = np.asarray(generalised)
    size = np.resize([7, 8, 7, 9, 7], n)
    rest = 0.577 * np.exp(-t / (60 + 8 * rng.random(n))) + 0.012
    grown = sigmoid((t - 0.85 * at) / (0.09 * at))
    norm = np.stack([1.02 * rest + 0.9 * grown, rest, rest * (1 + 0.06 * rng.standard_normal((len(t), n)))], axis=-1)
    agrees = sigmoid((t - 0.8 * at) / (0.08 * at))
    level = 0.6 + 0.1 * rng.random(n)
    held_out = np.stack([0.5 + 0.5 * agrees, 0.96 - (0.96 - level) * agrees, 0.55 + 0 * agrees], axis=-1)
    train = np.stack([0.55 + 0.45 * agrees, 1 - (1 - level) * agrees, 0.52 + 0 * agrees], axis=-1)
    agreement = np.clip(np.stack([train, held_out], axis=2) + 0.01 * rng.standard_normal((len(t), n, 2, 3)), 0, 1)
    ends = np.array([3.0, 3.0, 9.0, 12.0])
    sensitivity = ends + (np.array([16.0, 14.0, 16.0, 15.0]) - ends) * (1 - agrees[..., None])
    chosen = np.zeros((n, neurons), dtype=bool)
    for member in range(n):
        chosen[member, rng.choice(neurons, size[member], replace=False)] = True
    dims = ("step", "member")
    return xr.Dataset(
        {
            "norm": ((*dims, "set"), norm),
            "agreement": ((*dims, "split", "set"), agreement),
            "sensitivity": ((*dims, "network"), sensitivity),
            "overlap": (dims, np.round(grown * size).astype(np.int64)),
            "generalizing": (("member", "neuron"), chosen),
            "size": (("member",), size),
        },
        coords=_coordinates(n, coordinates)
        | {
            "step": t.ravel() * STEPS_PER_EPOCH,
            "set": SETS,
            "split": ["train", "held_out"],
            "network": ["full", *SETS],
        },
        attrs={"kind": "SubnetworkComparison", "layer": "network.fc1", "choose": "last", "controls": 20, "top": 10},
    )


def record(groups, **attrs):
    """A record of these groups, by name."""
    root = {
        "experiment": "parity",
        "config": "model:\n  class_path: MLP\n",
        "steps_per_epoch": STEPS_PER_EPOCH,
        "last_step": 300 * STEPS_PER_EPOCH,
        "n_members": 5,
        "status": "finished",
        "version_torch": "2.13.0",
    }
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs = root | attrs
    return tree


def parity_record(*, members=5, epochs=300, neurons=200):
    """Five members that memorise at epochs 20-38 and grok at 118-174, or the first few of them."""
    memorised, generalised = MEMORISED[:members], GENERALISED[:members]
    seeds = {"seed": np.arange(members)}
    return record(
        {
            "curves": curves(epochs, memorised, generalised, seeds),
            "onset": onsets(
                memorised * STEPS_PER_EPOCH, generalised * STEPS_PER_EPOCH, epochs * STEPS_PER_EPOCH, seeds
            ),
            "sparse_subnetwork": sparse_subnetwork(epochs, memorised, generalised, seeds, neurons=neurons),
            "subnetworks": subnetworks(epochs, memorised, generalised, seeds, neurons=neurons),
            "neurons": neuron_norms(epochs, memorised, generalised, seeds, neurons=neurons),
        },
        n_members=members,
        last_step=epochs * STEPS_PER_EPOCH,
    )


def sweep_record(settings=3, repeats=3, *, epochs=300):
    """A sweep of weight decay; the stronger, the earlier members generalise; the weakest never do."""
    decay = np.repeat(0.1 / 2.0 ** np.arange(settings), repeats)
    seeds = np.tile(np.arange(repeats), settings)
    memorised = np.full(len(decay), 25) + seeds
    generalised = np.round(60 * (0.1 / decay) ** 0.7).astype(int) + 10 * seeds
    steps = np.where(generalised <= epochs, generalised * STEPS_PER_EPOCH, np.nan)
    coordinates = {"seed": seeds, "weight_decay": decay}
    return record(
        {
            "curves": curves(epochs, memorised, generalised, coordinates),
            "onset": onsets(memorised * STEPS_PER_EPOCH, steps, epochs * STEPS_PER_EPOCH, coordinates),
            "sparse_subnetwork": sparse_subnetwork(epochs, memorised, generalised, coordinates),
            "subnetworks": subnetworks(epochs, memorised, generalised, coordinates),
            "neurons": neuron_norms(epochs, memorised, generalised, coordinates),
        },
        n_members=len(decay),
    )


# ---- modular arithmetic: what a splitter of Fourier logits, a parameter norm and learning curves leave of it ---------

GROKKED = np.array([4000, 5200, 3600, 4700, 4300])  # Steps around which the trigonometric circuit grows.
LEARNT = np.array([150, 140, 170, 160, 150])  # Steps around which the table is learnt by heart.
KEYS = ([3, 7, 11, 14], [2, 5, 9], [1, 6, 8, 12, 15], [4, 10, 13], [3, 8, 14])  # Fit for p = 31 and above.
ROWS, OVER = ["all", "train", "held_out"], ["all", "held_out"]


def log_steps(last, per_decade=12):
    """Step 0, then steps evenly spaced on a log scale."""
    return np.unique(np.concatenate([[0], np.round(10 ** np.arange(0, np.log10(last) + 1e-9, 1 / per_decade)), [last]]))


def circuits(steps, members):
    """Amplitude of the trigonometric circuit and logit of the lookup table, `(T, E)` each; exact null models aside."""
    t, grokked, learnt = steps[:, None], np.resize(GROKKED, members), np.resize(LEARNT, members)
    x = np.log1p(t)
    trigonometric = 26 * sigmoid((x - np.log(0.8 * grokked)) / 0.22) + 0.4 * x * (t > 0)
    table = 22 * sigmoid((x - np.log(learnt)) / 0.25) * (1 + 0.05 * x)
    return trigonometric, table * (1 - 0.93 * sigmoid((x - np.log(1.2 * grokked)) / 0.15))


def fourier(steps, coordinates, members, *, p=113, share=0.3, neurons=60, seed=0):
    """Dataset of a planted trigonometric circuit on top of an exact lookup table of the share of the rows given.

    Its key frequencies are those of `KEYS`; at step 0 they are the largest of the embedding in all members but the
    second.
    """
    rng = np.random.default_rng(seed)
    amplitude, table = circuits(steps, members)
    frequencies = np.arange(1, p // 2 + 1)
    keys = np.zeros((members, len(frequencies)), dtype=bool)
    for member in range(members):
        keys[member, np.array(KEYS[member % len(KEYS)]) - 1] = True
    grown = amplitude / amplitude[-1]
    each = keys * (1 + 0.3 * rng.random(keys.shape))
    each = amplitude[..., None] * each / each.sum(axis=1, keepdims=True)
    known = share > 0
    squares = (each + share * table[..., None] * 2 / (p - 1)) ** 2 * p**3 / 2
    rest = share * (1 - share) * table**2 * p**3 / (p - 1) + p**3 * 0.02
    power = squares / (squares.sum(axis=-1) + rest)[..., None]
    squared = power.sum(axis=-1)
    held = np.full_like(amplitude, np.nan) if share == 1 else amplitude
    held_share = held**2 / (held**2 + 3 + 2 * (1 - grown))
    wrong = 0.35 * table + 1.5
    shape = (len(steps), members, len(frequencies))
    embedding = (0.2 + rng.random((1, *shape[1:]))) * np.where(keys & (np.arange(members) != 1)[:, None], 6, 1)
    embedding = embedding * (1 - grown[..., None]) + (keys * 10 + 0.05) * grown[..., None]
    embedding /= embedding.sum(axis=-1, keepdims=True)
    choice = np.stack([rng.choice(frequencies[key], neurons) for key in keys])
    early = rng.choice(frequencies, (len(steps), members, neurons))
    late = grown[..., None] > 0.3 + 0.6 * rng.random((1, members, neurons))
    neuron = np.where(late, choice, early).astype(float)
    neuron[:, :, [0, 5]] = np.nan
    explained = np.where(late, 0.9 + 0.09 * rng.random(neuron.shape), 0.2 + 0.4 * rng.random(neuron.shape))
    explained[:, :, [0, 5]] = np.nan
    both, dims = ("step", "member"), ("step", "member", "frequency")
    return xr.Dataset(
        {
            "train_share": (both, np.full(amplitude.shape, share)),
            "correct": ((*both, "rows"), np.stack([amplitude + share * table, amplitude + table, held], axis=-1)),
            "trigonometric": ((*both, "over"), np.stack([amplitude + share * table, held], axis=-1)),
            "memorising": (
                (*both, "rows"),
                np.stack([0 * table, (1 - share) * table, held - amplitude - share * table], axis=-1),
            ),
            "memorising_wrong": ((*both, "rows"), np.stack([wrong, 0.8 * wrong, wrong + held * 0], axis=-1)),
            "share": ((*both, "over"), np.sqrt(np.stack([squared, held_share], axis=-1))),
            "share_squared": ((*both, "over"), np.stack([squared, held_share], axis=-1)),
            "power": (dims, power),
            "table_share": (both, np.full(amplitude.shape, np.sqrt(share))),
            "table_trigonometric": (both, share * (amplitude + table)),
            "table_memorising": (both, (1 - share) * (amplitude + table)),
            "table_power": (dims, np.full(power.shape, share * 2 / (p - 1))),
            "key": (dims, keys & (power > 0.005) & (grown[..., None] > 0.1)),
            "restricted_loss": (both, np.log(p) * np.exp(-0.4 * amplitude) + 1e-6),
            "excluded_loss": (both, np.log(p) * (np.exp(-0.4 * table) + 0.8 * known * grown)),
            "embedding_power": (dims, embedding),
            "embedding_gini": (both, 0.1 + 0.6 * grown),
            "neuron_frequency": ((*both, "neuron"), neuron),
            "neuron_explained": ((*both, "neuron"), explained),
            "neuron_logit_gini": (both, 0.12 + 0.75 * grown),
            "neuron_logit_power": (dims, power / squared[..., None]),
        },
        coords=_coordinates(members, coordinates)
        | {"step": steps.astype(int), "rows": ROWS, "over": OVER, "frequency": frequencies},
        attrs={"kind": "FourierLogitSplitter", "modulus": p, "operation": "add", "layout": "a op b ="},
    )


def parameter_norm(steps, coordinates, members, *, seed=0):
    """Dataset `total`, `norm`: it falls from step 100 on."""
    x = np.log1p(steps)[:, None]
    total = 45 + 15 * sigmoid((x - np.log(40)) / 0.3) - 28 * sigmoid((x - np.log(1500)) / 0.6)
    total = total + np.random.default_rng(seed).random((1, members))
    shares = np.sqrt([0.3, 0.5, 0.2])
    return xr.Dataset(
        {
            "total": (("step", "member"), total),
            "norm": (("step", "member", "tensor"), total[..., None] * shares),
        },
        coords=_coordinates(members, coordinates)
        | {"step": steps.astype(int), "tensor": ["embed.weight", "mlp.weight", "unembed.weight"]},
        attrs={"kind": "ParameterNorm"},
    )


def modular_curves(steps, coordinates, members, *, p=113, share=0.3):
    """Dataset `loss`, `accuracy` with a third split, and `unpaired_share`: other in each member, as rows are drawn."""
    trigonometric, table = circuits(steps, members)
    swapped = np.resize(share + np.array([0.002, -0.004, 0.0, 0.003, -0.001]), members)
    unpaired = sigmoid((trigonometric - 14) / 1.2)
    held = unpaired + (1 - unpaired) * 0.5 * swapped * sigmoid(table - 8)
    train = sigmoid(trigonometric + table - 10)
    losses = [
        np.log(p) * np.exp(-0.5 * (trigonometric + table)) + 2e-8,
        np.log(p) * (1 + table / 8) * (1 - held) + 1e-6,
    ]
    nothing = np.full_like(held, np.nan)
    accuracy = np.stack([train, held, unpaired] if share < 1 else [train, nothing, nothing])
    loss = np.stack([losses[0], losses[1], 1.3 * losses[1]] if share < 1 else [losses[0], nothing, nothing])
    constant = np.broadcast_to(1 - swapped if share < 1 else np.nan, held.shape)
    dims = ("split", "step", "member")
    return xr.Dataset(
        {"loss": (dims, loss), "accuracy": (dims, accuracy), "unpaired_share": (dims[1:], constant)},
        coords=_coordinates(members, coordinates)
        | {"step": steps.astype(int), "split": ["train", "held_out", "held_out_unpaired"]},
        attrs={"kind": "LearningCurves"},
    )


def modular_record(*, members=5, last=12000, p=113, share=0.3, per_decade=12, coordinates=None, **options):
    """Members that memorise around step 200 and grok around step 4,000; every monitor has steps of its own."""
    coordinates = {"seed": np.arange(members)} | (coordinates or {})
    learnt, grokked = np.resize(LEARNT, members), np.resize(GROKKED, members)
    steps = log_steps(last, per_decade)
    groups = {
        "curves": modular_curves(
            np.unique(np.append(np.arange(0, last, 100), last)), coordinates, members, p=p, share=share
        ),
        "onset": onsets(1.2 * learnt, 0.95 * grokked, last, coordinates),
        "fourier": fourier(steps, coordinates, members, p=p, share=share, **options),
        "parameter_norm": parameter_norm(log_steps(last, 2 * per_decade), coordinates, members),
    }
    return record(groups, experiment="modular", n_members=members, last_step=last, steps_per_epoch=1)
