"""The pure core: records, join, bandit, encoder, learner and the engine that ties them."""
