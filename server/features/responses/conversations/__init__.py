"""OpenAI's conversations: `/v1/conversations`, which responses continue and add to."""
