"""What the papers prove, as code that checks it, and the networks that the proofs build."""

from grok_lightning.theory.addition import (
    addition_network,
    analytic_addition,
    draw_random_phases,
    logit_cube,
    network_of_waves,
    random_addition_network,
    random_phases,
)
from grok_lightning.theory.claims import Claim, Line
from grok_lightning.theory.effective_loss import EffectiveLoss, minimise, optimum
from grok_lightning.theory.efficiency import (
    draw_optimal_weights,
    lemma_d2,
    lemma_d3,
    lemma_d3_reach,
    theorem_d1,
    theorem_d4,
)
from grok_lightning.theory.ingredients import (
    Ingredients,
    Outcome,
    PhaseMap,
    Trajectory,
    at_rest,
    frozen_without_decay,
    outcome,
    phase_map,
    simulate,
    three_ingredients,
    time_to_grok,
    too_slow_to_win,
    two_circuits_at_rest,
)
from grok_lightning.theory.ingredients_figures import draw_phase_map, draw_three_ingredients
from grok_lightning.theory.parity import (
    draw_propositions,
    network_of,
    proposition_1,
    proposition_1_network,
    proposition_2,
    proposition_2_network,
    proposition_3,
    proposition_3_network,
)
from grok_lightning.theory.parity_norm import draw_least_norm, least_norm, least_norm_network

__all__ = [
    "CLAIMS",
    "Claim",
    "EffectiveLoss",
    "Ingredients",
    "Line",
    "Outcome",
    "PhaseMap",
    "Trajectory",
    "addition_network",
    "analytic_addition",
    "at_rest",
    "frozen_without_decay",
    "least_norm",
    "least_norm_network",
    "lemma_d2",
    "lemma_d3",
    "lemma_d3_reach",
    "logit_cube",
    "minimise",
    "network_of",
    "network_of_waves",
    "optimum",
    "outcome",
    "phase_map",
    "proposition_1",
    "proposition_1_network",
    "proposition_2",
    "proposition_2_network",
    "proposition_3",
    "proposition_3_network",
    "random_addition_network",
    "random_phases",
    "simulate",
    "theorem_d1",
    "theorem_d4",
    "three_ingredients",
    "time_to_grok",
    "too_slow_to_win",
    "two_circuits_at_rest",
]

CLAIMS: tuple[Claim, ...] = (
    Claim(proposition_1, {"propositions": draw_propositions}),
    Claim(proposition_2),
    Claim(proposition_3),
    Claim(least_norm, {"least_norm": draw_least_norm}),
    Claim(three_ingredients, {"three_ingredients": draw_three_ingredients}),
    Claim(two_circuits_at_rest),
    Claim(time_to_grok, {"phase_map": draw_phase_map}),
    Claim(frozen_without_decay),
    Claim(too_slow_to_win),
    Claim(theorem_d1),
    Claim(lemma_d2),
    Claim(lemma_d3),
    Claim(theorem_d4, {"optimal_weights": draw_optimal_weights}),
    Claim(analytic_addition),
    Claim(random_phases, {"random_phases": draw_random_phases}),
)
"""All claims, in the order of the table."""
