"""From a parsed request to choices: admission, prompts, the service, streams of choices, and saved states."""
