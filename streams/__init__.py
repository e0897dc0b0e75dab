"""The Faust shell around the core."""
