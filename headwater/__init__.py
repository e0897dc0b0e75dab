"""The command that puts everything together."""
