"""Adaptation as a service: guarded streams that never touch each other, budgets, readers, and an HTTP server."""
