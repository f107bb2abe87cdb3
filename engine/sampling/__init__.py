"""Logits to tokens: logits processors, temperature, truncation and the draw, with a float64 reference."""
