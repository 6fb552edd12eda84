"""Reading and writing what a run leaves behind. Loading never runs code."""
