"""rlax_ft: fine-tuning models with reinforcement learning in JAX/Flax; import the rooms you need from here down."""

import os

# transformers advises at its import to install torch; here it serves for tokenizers, configurations and templates.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
