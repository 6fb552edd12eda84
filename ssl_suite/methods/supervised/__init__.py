"""Methods: supervised."""
