"""Parts of requests and responses that the APIs share."""
