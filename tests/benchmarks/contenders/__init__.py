"""The programs that are compared; each runs in a process of its own and ends once all its input is consumed."""
