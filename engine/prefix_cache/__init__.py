"""Prefix cache: token prefixes to state snapshots, in memory and on disk, and the files of saved states."""
