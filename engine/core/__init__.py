"""Types that every part of the engine shares: requests, tokens, errors, configuration. Imports nothing above."""
