"""The arithmetic that losses share: reduction, log-probabilities, KL, returns. Pure functions of arrays."""
