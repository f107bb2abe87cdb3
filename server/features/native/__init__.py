"""Roost's native endpoints, and endpoints of llama.cpp and vLLM."""
