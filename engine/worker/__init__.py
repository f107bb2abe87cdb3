"""Runs the model on its devices: state pool, compiled programs, steps."""
