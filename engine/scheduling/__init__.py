"""Scheduler: chooses the requests that run, and plans the next device step. Pure host Python."""
