"""Event feeds."""
