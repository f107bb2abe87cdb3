"""Prefix cache: maps token prefixes to state snapshots, in memory and on disk. Also has the file format of saved
states.
"""
