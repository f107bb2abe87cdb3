"""The devices that an engine runs on: the platform, JAX's settings of the process, and several hosts."""
