"""Data modules of time series."""
