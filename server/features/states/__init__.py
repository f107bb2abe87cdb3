"""Routes of saved states, and their transfer as files."""
