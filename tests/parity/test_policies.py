from __future__ import annotations

import pytest
import torch

from ssl_suite.methods.self_training.policies import FixedThreshold


def test_threshold_is_inclusive_and_target_is_the_argmax():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.3, 0.3, 0.4]])
    target, weight = FixedThreshold(0.5)(probs)
    assert target.tolist() == [0, 1, 2]
    assert weight.tolist() == [1.0, 1.0, 0.0]
    assert FixedThreshold(0.0)(probs)[1].tolist() == [1.0, 1.0, 1.0]


def test_threshold_outside_of_probability_is_refused():
    with pytest.raises(ValueError, match=r"policy\.threshold .* 95"):
        FixedThreshold(95)
