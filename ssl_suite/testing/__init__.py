"""Public checks for your own methods and data modules: the same ones the suite's methods must pass.

from ssl_suite.testing import check_method
check_method(lambda backbone, views, spec: MyMethod(backbone, views), modality="images")
"""

from ssl_suite.testing.data import check_datamodule
from ssl_suite.testing.methods import CHECKS, Case, check_method
from ssl_suite.testing.tiny import tiny_backbone, tiny_batch, tiny_spec, tiny_views

__all__ = ["CHECKS", "Case", "check_datamodule", "check_method", "tiny_backbone", "tiny_batch", "tiny_spec", "tiny_views"]
