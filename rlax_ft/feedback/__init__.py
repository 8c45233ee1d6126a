"""Human judgements: their store, and a simulated annotator that writes to it."""
