"""The ``coar`` command: one module a command, in rooms by what people do."""
