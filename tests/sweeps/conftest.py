"""Made-up sweeps, of members whose end is known."""

import numpy as np
import pytest

from grok_lightning.sweeps import Sweep


@pytest.fixture
def make_sweep():
    """A sweep of members that were warm-started, from a table of them.

    `accuracy`, `unpaired`, `train_accuracy`, `norm`, `box_share` and `time`: `(T, E)`, or what broadcasts to that; the
    other arguments `(E,)`, likewise.
    """

    def make(
        *,
        size,
        accuracy,
        step=None,
        time=None,
        weight_decay=1.0,
        eps=1e-8,
        seed=0,
        train_accuracy=1.0,
        unpaired=np.nan,
        norm=20.0,
        box_share=0.0,
        began=0.0,
        start_accuracy=1.0,
        chance=0.0,
    ):
        size = np.asarray(size, dtype=float)
        members = len(size)
        step = np.arange(0, 10_001, 500.0) if step is None else np.asarray(step, dtype=float)

        def column(values, dtype=float):
            return np.broadcast_to(np.asarray(values, dtype=dtype), (members,)).copy()

        def series(values):
            return np.broadcast_to(np.asarray(values, dtype=float), (len(step), members)).copy()

        decay = column(weight_decay)
        return Sweep(
            step=step,
            time=series(1e-3 * decay * (step[:, None] - column(began)) if time is None else time),
            train_accuracy=series(train_accuracy),
            accuracy=series(accuracy),
            unpaired=series(unpaired),
            removed=series(np.nan),
            never_seen=series(np.nan),
            norm=series(norm),
            box_share=series(box_share),
            size=size,
            weight_decay=decay,
            eps=column(eps),
            seed=column(seed, np.int64),
            began=column(began),
            start_accuracy=column(start_accuracy),
            chance=chance,
            other={},
            member=np.arange(members),
        )

    return make
