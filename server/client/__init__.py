"""Client for servers with OpenAI's API."""
