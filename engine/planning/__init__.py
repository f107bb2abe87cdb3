"""Converts an expected load to a number of replicas, by a discrete-event simulation of one replica."""
