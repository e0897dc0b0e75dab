"""A Faust transport that hands over partition batches."""
