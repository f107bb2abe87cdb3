"""Checkpoints: their formats and layouts on disk, and loading, placing and converting them."""
