"""How much of a model fits on a device and how fast it can be: estimates, and programs compiled without a device."""
