"""Methods: adaptation."""
