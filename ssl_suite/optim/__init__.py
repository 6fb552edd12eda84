"""Optimizers, parameter groups and learning-rate schedules."""

from ssl_suite.optim.groups import layer_groups, parameter_groups
from ssl_suite.optim.schedules import Constant, Cosine, FixMatchCosine, Frozen, Infinite, Schedule, TriStage

__all__ = ["Constant", "Cosine", "FixMatchCosine", "Frozen", "Infinite", "Schedule", "TriStage", "layer_groups", "parameter_groups"]
