"""Win rates, the reward-versus-KL frontier, enumeration of small policies, plots."""
