"""What the weights of a folder hold beyond what its config.json asks for: refused where the two contradict each other.

transformers leaves such tensors out with a warning, and computes another model than the one that was trained. Leaves
out tensors that are asked for (weights.py).
"""

import logging
import re

import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.hf.families import FAMILIES
from rlax_ft.models.config import ModelConfig

# What older versions of transformers saved of what is computed.
_BUFFERS = re.compile(r'.*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)')
_ROWS = 4096  # Rows of two embeddings that are compared at a time.


def check_unread(weights, config: ModelConfig, leaves: list) -> None:
    """Looks at the tensors that make up no parameter.

    Args:
      weights: `weights.Weights` of the folder.
      config: of the model.
      leaves: its parameters, of `weights.leaves_of`.

    Raises:
      InputError: one of the names that the family knows, such as a bias or a layer that config.json denies, or an LM
        head of its own where config.json ties it.
    """
    family = FAMILIES[config.family]
    read = {
        weights.find(leaf.template.format(layer=layer, expert=expert))
        for leaf in leaves
        for layer in range(leaf.layers or 1)
        for expert in range(leaf.experts or 1)
    }
    left = [name for name in sorted(weights.shapes) if name not in read and not _BUFFERS.fullmatch(name)]
    head, scalar = family.names['head'], any(leaf.path[0] == 'backbone' for leaf in leaves)
    if head in left:
        left.remove(head)
        embedding = weights.find(family.names['embed/embedding'])
        if config.tied and not scalar and not _equal(weights, head, embedding):
            raise InputError(
                f'{weights.file_of(head)}: {head} is another matrix than {embedding}, though config.json says '
                '"tie_word_embeddings": true; it should be false'
            )
    known = [_pattern(name) for ours, name in family.names.items() if ours != 'head']
    for name in left:
        if any(pattern.fullmatch(name) for pattern in known):
            raise InputError(
                f'{weights.file_of(name)}: holds {name}, which a model as config.json describes it does not have'
            )
    if left:
        logging.warning(
            '%s: %d tensors that a %s model has no use for, such as %s',
            weights.folder,
            len(left),
            config.family,
            left[0],
        )


def _pattern(template):
    """Matches the names of a template, with or without the prefix that a bare base model lacks."""
    first, dot, rest = re.escape(template).partition(r'\.')
    text = f'({first}{dot})?{rest}' if dot else first
    return re.compile(text.replace(r'\{layer\}', r'\d+').replace(r'\{expert\}', r'\d+'))


def _equal(weights, first, second):
    if weights.shapes[first] != weights.shapes[second]:
        return False
    rows = weights.shapes[first][0]
    for start in range(0, rows, _ROWS):
        index = slice(start, min(start + _ROWS, rows)), slice(None)
        if not np.array_equal(weights.read(first, index), weights.read(second, index)):
            return False
    return True
