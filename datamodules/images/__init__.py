"""Data modules of pictures."""
