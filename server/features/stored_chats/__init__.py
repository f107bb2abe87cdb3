"""OpenAI's stored chat completions: `store: true`, and the endpoints that list and return them."""
