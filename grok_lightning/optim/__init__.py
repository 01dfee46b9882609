"""Optimization that keeps members apart."""

from grok_lightning.optim.member_decay import ELEMENTWISE, MemberDecay, check_elementwise
from grok_lightning.optim.override import override_optimizer, override_scheduler
from grok_lightning.optim.warmup import LinearWarmup

__all__ = [
    "ELEMENTWISE",
    "LinearWarmup",
    "MemberDecay",
    "check_elementwise",
    "override_optimizer",
    "override_scheduler",
]
