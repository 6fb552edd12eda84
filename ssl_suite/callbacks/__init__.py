"""What watches a run without being part of it."""

from ssl_suite.callbacks.collapse import CollapseMonitor
from ssl_suite.callbacks.decay import WeightDecay
from ssl_suite.callbacks.finite import FiniteGuard
from ssl_suite.callbacks.knn import OnlineKNN
from ssl_suite.callbacks.pictures import Pictures
from ssl_suite.callbacks.plateau import Plateau
from ssl_suite.callbacks.pseudo_labels import PseudoLabelMonitor
from ssl_suite.callbacks.resume import ResumeState
from ssl_suite.callbacks.termination import Termination
from ssl_suite.callbacks.wait import DataWait

__all__ = ["CollapseMonitor", "DataWait", "FiniteGuard", "OnlineKNN", "Pictures", "Plateau", "PseudoLabelMonitor", "ResumeState",
           "Termination", "WeightDecay"]
