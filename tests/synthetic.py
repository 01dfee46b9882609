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
