"""Raw inputs to numbers."""
