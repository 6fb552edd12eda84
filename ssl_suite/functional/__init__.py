"""Pure functions: no state, no logging, no trainer."""
