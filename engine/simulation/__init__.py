"""A device that isn't there: takes the time of a real one, and makes tokens without a model."""
