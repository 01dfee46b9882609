"""Plain ``nn.Module`` networks whose parameters and logits lead with a member axis E. torch only."""

from grok_lightning.networks.layers import MemberLinear, draw_default, lead_with_members
from grok_lightning.networks.mlp import ACTIVATIONS, MLPNetwork
from grok_lightning.networks.network import Network

__all__ = ["ACTIVATIONS", "MLPNetwork", "MemberLinear", "Network", "draw_default", "lead_with_members"]
