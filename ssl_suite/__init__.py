"""ssl_suite: self-supervision for vision, speech and time series, from pre-training to adaptation at deployment."""

from ssl_suite.config import check_stack

__version__ = "0.1.0"

check_stack()
