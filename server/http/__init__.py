"""HTTP: connections, middleware, access control, routes, streaming and health checks."""
