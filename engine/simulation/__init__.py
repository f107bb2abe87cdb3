"""A simulated device, which has the timing of a real one and draws tokens without a model."""
