"""Unit tests: environments."""
