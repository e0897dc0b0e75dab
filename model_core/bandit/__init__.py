"""Posterior sampling and slates with exact propensities."""
