"""Optimization that keeps members apart."""

from grok_lightning.optim.member_decay import ELEMENTWISE, MemberDecay, check_elementwise

__all__ = ["ELEMENTWISE", "MemberDecay", "check_elementwise"]
