"""Made-up records with the shape of a grokking run, for tests of what reads records."""

import json

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


# ---- sweeps over training-set sizes ----------------------------------------------------------------------------------

SIZES = (60, 90, 130, 180, 300)
MODULUS = 31
LEARNING_RATE = 1e-3
CRITICAL_SIZE, WIDTH_PARAMETER = 135.0, 0.25
SEED_EFFECTS = (-0.09, 0.02, 0.07, -0.03, 0.05, -0.06, 0.01, 0.04, -0.05, 0.03)
"""Of log D_crit; one a seed, the same in all arms."""


def size_sweep_record(
    sizes=SIZES,
    decays=(0.3, 1.0),
    seeds=3,
    eps=(1e-8,),
    *,
    start="generalised",
    slope=0.0,
    last_time=15.0,
    measurements=46,
    unconverged=(),
    boxed=(),
    margins=True,
    chance=True,
    first_seed=0,
):
    """Members over sizes, weight decays, values of eps and seeds; their end accuracies lie on a planted logistic curve.

    `start`: `generalised` (from step 0 on a small set), `shrunk` (learns the table, then loses rows, each seed at a
    step of its own) or `scratch` (rises instead of falling). `unconverged`: members, by position, that still move at
    the end. `boxed`: weight decays whose weights sit in the box. All members have the same steps: the one with the
    smallest positive weight decay has `last_time` decay units in the end.
    """
    cells = [
        (d, decay, e, s) for d in sizes for decay in decays for e in eps for s in range(first_seed, first_seed + seeds)
    ]
    size, decay, epsilon, seed = (np.array(column) for column in zip(*cells, strict=True))
    members = len(cells)
    positive = [value for value in decays if value > 0]
    last = round(last_time / (LEARNING_RATE * min(positive, default=1.0)))
    began = np.where(start == "shrunk", 1000 + 200 * seed, 0)
    # Dense at first, where much weight decay has gone through as much as little will in the end.
    share = max(1e-3, min(positive, default=1.0) / max(positive, default=1.0))
    ends = np.append(np.geomspace(share, 1, 1 + round(np.log2(1 / share))), 1) * (last + began.max())
    steps = np.unique(np.round(np.concatenate([np.linspace(0, end, measurements) for end in ends])).astype(int))
    if start == "shrunk":
        steps = np.unique(np.concatenate([np.arange(0, 2000, 100), steps]))
    since = np.maximum(steps[:, None] - began, 0) / last
    effect = np.resize(SEED_EFFECTS, first_seed + seeds)[seed]
    reference = max(positive, default=1.0)
    critical = np.log(CRITICAL_SIZE) + effect + slope * np.log(np.where(decay > 0, decay, reference) / reference)
    guess = 1 / MODULUS
    end = guess + (1 - guess) * sigmoid((np.log(size) - critical) / WIDTH_PARAMETER)
    # A member without weight decay keeps what it knows.
    end = np.where(decay > 0, end, np.maximum(end, 0.9))
    # A member with more weight decay has gone through as much of its way at the same decay time.
    way = 1 - np.exp(-14 * since * np.where(decay > 0, decay, min(positive, default=1.0)) / min(positive, default=1.0))
    way[:, list(unconverged)] = 0.7 * since[:, list(unconverged)]
    held = (guess if start == "scratch" else 1.0) * (1 - way) + end * way
    train = np.ones_like(held)
    if start == "scratch":
        train[steps == 0] = guess
    if start == "shrunk":
        learnt = sigmoid((steps - 400) / 40)[:, None]
        before = steps[:, None] < began
        held = np.where(before, np.nan, held)
        train = np.where(before, learnt, train)
    train = train - 0.004 * (since > 0) * (size < 100)
    swapped = size / MODULUS**2
    unpaired = np.clip((held - 0.5 * swapped) / (1 - 0.5 * swapped), 0, 1)
    splits = {"train": train, "held_out": held, "held_out_unpaired": unpaired}
    coordinates = {"seed": seed, "weight_decay": decay.astype(float)}
    if len(eps) > 1:
        coordinates["eps"] = epsilon
    if start == "shrunk":
        splits |= {"held_out_removed": np.minimum(1, held * 1.01), "held_out_never_seen": held * np.nan}
        coordinates["shrink_size"] = size
    else:
        coordinates["train_size"] = size
    both, three = ("step", "member"), ("split", "step", "member")
    accuracy = np.stack([*splits.values()])
    place = _coordinates(members, coordinates) | {"step": steps}
    curves = xr.Dataset(
        {
            "loss": (three, np.where(np.isnan(accuracy), np.nan, 1e-6 + 3 * (1 - accuracy))),
            "accuracy": (three, accuracy),
            "unpaired_share": (both, np.broadcast_to(1 - swapped, held.shape)),
        },
        coords=place | {"split": [*splits]},
        attrs={"kind": "LearningCurves"},
    )
    in_box = np.where(np.isin(decay, boxed), 0.8, 0.02) * np.minimum(1, 50 * since)
    convergence = xr.Dataset(
        {
            "decay_time": (both, LEARNING_RATE * decay * steps[:, None]),
            "norm": (both, 20 + effect + 6 * (1 - way)),
            "box_share": (both, np.where(decay > 0, in_box, np.nan)),
            "weight_decay": (("member",), decay.astype(float)),
            "eps": (("member",), epsilon),
        },
        attrs={"kind": "Convergence"},
    ).assign_coords(place)
    fallen = (held < 0.96) & (steps[:, None] >= began)
    first = steps[fallen.argmax(axis=0)].astype(float)
    onset = onsets(
        *{
            "generalised": (np.zeros(members), np.zeros(members)),
            "shrunk": (np.full(members, 400.0), np.full(members, 1000.0)),
            "scratch": (
                np.full(members, float(steps[1])),
                np.where((held >= 0.98).any(axis=0), steps[(held >= 0.98).argmax(axis=0)], np.nan),
            ),
        }[start],
        steps[-1],
        coordinates,
    )
    onset["resolution"] = onset["resolution"].where(onset["step"] != 0, 0.0)
    if start != "scratch":
        onset["step"].loc[{"event": "forgotten"}] = np.where(fallen.any(axis=0), first, np.nan)
    groups = {"curves": curves, "onset": onset, "convergence": convergence}
    if start == "shrunk":
        groups["dataset_shrink"] = xr.Dataset(
            {
                "step": (("member",), began.astype(float)),
                "size": (("member",), size.astype(float)),
                "rows_before": (("member",), np.full(members, float(MODULUS**2))),
            },
            coords=_coordinates(members, coordinates),
            attrs={"kind": "DatasetShrink"},
        )
    attrs = {"chance": guess} if chance else {}
    if margins:
        attrs["margins"] = json.dumps({"accuracy_moved": 0.02, "norm_moved": 0.02, "width": 4.0, "slope": 0.1})
    return record(
        groups,
        experiment="ungrokking",
        n_members=members,
        last_step=int(steps[-1]),
        steps_per_epoch=1,
        **attrs,
    )
