"""How good a model is: figures of rankings, with intervals."""
