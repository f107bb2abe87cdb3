"""Assembly of a server: the engine's configuration, its loading, and the service."""
