"""Logits to tokens: processors, penalties and the sampler, with a float64 reference."""
