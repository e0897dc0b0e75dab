"""What all tests share: generated cases are the same ones on every run."""

from hypothesis import HealthCheck, settings

# The machine's speed is no property of the code, so examples have no deadline; derandomised, so a failure repeats.
settings.register_profile(
    "headwater", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headwater")
