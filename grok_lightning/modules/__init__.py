"""LightningModules: one abstract base, final ones for each network."""

from grok_lightning.modules.member_mean import MemberMean
from grok_lightning.modules.mlp import MLP
from grok_lightning.modules.module import GrokModule
from grok_lightning.modules.transformer import Transformer

__all__ = ["GrokModule", "MLP", "MemberMean", "Transformer"]
