"""From a parsed request to choices: prompts, constraints, streams, stored responses and saved states."""
