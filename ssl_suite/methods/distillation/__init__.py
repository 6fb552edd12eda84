"""Methods: distillation."""
