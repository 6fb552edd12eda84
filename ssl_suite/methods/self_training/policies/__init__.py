"""Policies: which pseudo-labels are believed, and how much. FixMatch takes any of them as its ``policy``.

Each is a module that is called once per step, on the guesses of the weak view; see `Policy`. What a policy remembers
stands in buffers, so that checkpoints and device moves carry it, and is the same on all processes. Statistics of a
batch are taken over all processes. Rows may be samples or the pixels of maps laid flat, but for `FlexMatch`, which
remembers samples.
"""

from ssl_suite.methods.self_training.policies.adaptive import FlexMatch, FreeMatch
from ssl_suite.methods.self_training.policies.aligned import AdaMatch, Alignment, SoftMatch
from ssl_suite.methods.self_training.policies.base import UDA, FixedThreshold, Policy
from ssl_suite.methods.self_training.policies.dash import Dash
from ssl_suite.methods.self_training.policies.entropy import EntropyPercentile

__all__ = ["UDA", "AdaMatch", "Alignment", "Dash", "EntropyPercentile", "FixedThreshold", "FlexMatch", "FreeMatch", "Policy",
           "SoftMatch"]
