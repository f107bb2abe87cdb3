"""Commands of `roost`."""
