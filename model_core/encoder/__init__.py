"""The sequence encoder."""
