"""A bandit over strategies: who serves whom, with what probability, and what each brings."""
