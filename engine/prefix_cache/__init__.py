"""Prefix cache: maps token prefixes to state snapshots, in memory and on disk. Also the files of saved states."""
