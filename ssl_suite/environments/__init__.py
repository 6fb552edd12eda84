"""Small worlds to act in."""
