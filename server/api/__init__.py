"""HTTP APIs: OpenAI's, Anthropic's and Roost's own."""
