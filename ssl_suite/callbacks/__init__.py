"""What watches a run without being part of it."""

from ssl_suite.callbacks.collapse import CollapseMonitor
from ssl_suite.callbacks.decay import WeightDecay
from ssl_suite.callbacks.finite import FiniteGuard
from ssl_suite.callbacks.knn import OnlineKNN
from ssl_suite.callbacks.pictures import Pictures
from ssl_suite.callbacks.plateau import Plateau
from ssl_suite.callbacks.resume import ResumeState
from ssl_suite.callbacks.termination import Termination

__all__ = ["CollapseMonitor", "FiniteGuard", "OnlineKNN", "Pictures", "Plateau", "ResumeState", "Termination", "WeightDecay"]
