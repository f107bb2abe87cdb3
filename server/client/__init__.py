"""Client for servers that speak OpenAI's API."""
