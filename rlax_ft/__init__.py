"""rlax_ft: fine-tuning models with reinforcement learning in JAX/Flax; the few names that a short program needs first.

They are imported when they are asked for, so that losses and ops stay light. All else is imported from where it is.
"""

import importlib
import os

# transformers advises at its import to install torch; here it serves for tokenizers, configurations and templates.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

_HOMES = {
    'Codec': 'data.codec',
    'Transformer': 'models.transformer',
    'candidate_logps': 'models.scoring',
    'init_state': 'training.step',
    'load_pretrained': 'hf.folder',
    'make_sampler': 'sampling.text',
    'make_train_step': 'training.step',
    'preference_objective': 'objectives.preference',
    'preference_rows': 'data.rows',
    'sample_prompts': 'sampling.text',
    'save_pretrained': 'hf.folder',
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
