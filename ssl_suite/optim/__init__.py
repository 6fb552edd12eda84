"""Optimizers, parameter groups and learning-rate schedules."""

from ssl_suite.optim.groups import layer_groups, parameter_groups
from ssl_suite.optim.schedules import Constant, Cosine, FixMatchCosine, TriStage

__all__ = ["Constant", "Cosine", "FixMatchCosine", "TriStage", "layer_groups", "parameter_groups"]
