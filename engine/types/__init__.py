"""Types that all parts of the engine share: requests, tokens, errors, configuration. Imports no other part."""
