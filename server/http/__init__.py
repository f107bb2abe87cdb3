"""ASGI middleware: request ids, authentication, drain, body limits, disconnects."""
