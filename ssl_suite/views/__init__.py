"""Augmentation on the device, batched, drawn per sample."""

from ssl_suite.views.plan import Op, Views, to_float

__all__ = ["Op", "Views", "to_float"]
