"""Plain ``nn.Module`` networks whose parameters and logits lead with a member axis E. torch only."""

from grok_lightning.networks.layers import (
    MemberEmbedding,
    MemberLayerNorm,
    MemberLinear,
    draw_default,
    lead_with_members,
)
from grok_lightning.networks.mlp import ACTIVATIONS, MLPNetwork
from grok_lightning.networks.network import Network
from grok_lightning.networks.transformer import TransformerNetwork

__all__ = [
    "ACTIVATIONS",
    "MLPNetwork",
    "MemberEmbedding",
    "MemberLayerNorm",
    "MemberLinear",
    "Network",
    "TransformerNetwork",
    "draw_default",
    "lead_with_members",
]
