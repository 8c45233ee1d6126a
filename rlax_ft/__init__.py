"""rlax_ft: fine-tuning models with reinforcement learning in JAX/Flax; import the rooms you need from here down."""
