"""What the papers prove, as code that checks it, and the networks that the proofs build."""

from grok_lightning.theory.claims import Claim, Line
from grok_lightning.theory.efficiency import lemma_d2

__all__ = ["CLAIMS", "Claim", "Line", "lemma_d2"]

CLAIMS: tuple[Claim, ...] = (Claim(lemma_d2),)
"""All claims, in the order of the table."""
