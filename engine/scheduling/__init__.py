"""Decides which requests run and what the next device step does. Pure host Python."""
