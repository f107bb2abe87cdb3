"""Decides which requests run and what the next device step is. Pure host Python."""
