"""Data modules of speech."""
