"""What scripts share: flags, run folder, starting model, compiled step, comparisons, rollouts and rewards."""
