"""Parts of a report, one module each; see `parts`."""
