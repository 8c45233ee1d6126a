"""Token samplers: prefill, decode, and what was sampled with its log-probabilities."""
