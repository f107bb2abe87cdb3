"""`roost chat`: a conversation on the terminal, with a running server or a model in this process."""
