"""The chat page: HTML, styles, scripts and the vendored libraries."""
