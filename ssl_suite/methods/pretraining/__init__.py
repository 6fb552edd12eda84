"""Methods: pretraining."""
