"""`roost batch`: runs a file of requests, on a model in this process or on servers."""
