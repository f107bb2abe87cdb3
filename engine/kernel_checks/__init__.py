"""Checks of a platform's kernels, at the shapes that are served, against XLA in float32."""
