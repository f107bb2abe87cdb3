"""Roost's own endpoints, and those of llama.cpp and vLLM."""
