"""Methods: self-training."""
