"""What adapter_config.json says: rank and scaling of each module, or a refusal of all that is not plain LoRA.

Leaves out the tensors (peft.py).
"""

import math
import re

from rlax_ft.data.sources import kind
from rlax_ft.errors import InputError
from rlax_ft.models.config import LoRAConfig

# What is read, and what changes nothing of a trained adapter's numbers; anything else that is set is refused.
_READ: tuple[str, ...] = (
    *('peft_type', 'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'bias'),
    *('target_modules', 'layers_to_transform', 'layers_pattern', 'exclude_modules', 'init_lora_weights'),
)
_WITHOUT_EFFECT: tuple[str, ...] = (
    *('task_type', 'base_model_name_or_path', 'revision', 'peft_version', 'auto_mapping', 'inference_mode'),
    *('fan_in_fan_out', 'megatron_core', 'loftq_config', 'eva_config', 'corda_config', 'lora_ga_config'),
    *('qalora_group_size', 'runtime_config', 'ensure_weight_tying'),
)
# Other ways to begin (pissa, olora, corda, loftq, ...) change the base model itself.
_BEGINNINGS = (None, True, False, 'gaussian', 'orthogonal', 'eva')


def read_entries(raw: dict) -> LoRAConfig:
    """Rank, scaling and dropout of an adapter.

    Raises:
      InputError: an entry is of the wrong kind, or asks for something other than plain LoRA without biases.
    """
    if raw.get('peft_type') != 'LORA' or raw.get('use_dora') or raw.get('bias', 'none') != 'none':
        raise InputError('only plain LoRA without biases is read')
    if raw.get('init_lora_weights') not in _BEGINNINGS:
        raise InputError(
            f'init_lora_weights is {raw["init_lora_weights"]!r}, which changes the base model; only plain LoRA is read'
        )
    for name, value in raw.items():
        if value and name not in _READ and name not in _WITHOUT_EFFECT:
            raise InputError(f'{name} is set; only plain LoRA on linear maps is read')
    rank, alpha = _rank(raw.get('r'), 'r'), _number(raw.get('lora_alpha'), 'lora_alpha')
    if alpha == 0:
        raise InputError('lora_alpha is 0, so that the adapter does nothing')
    for name, check in (('rank_pattern', _rank), ('alpha_pattern', _number)):
        for pattern, value in _patterns(raw, name).items():
            check(value, f'{name}, {pattern!r}')
            _compiled(pattern, name)
    dropout = _number(raw.get('lora_dropout') or 0.0, 'lora_dropout')
    if not 0 <= dropout < 1:
        raise InputError(f'lora_dropout is {dropout}; 0 to 1 was expected')
    targets = raw.get('target_modules')
    if isinstance(targets, str):
        _compiled(targets, 'target_modules')
    elif targets is not None and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise InputError(f'target_modules is {kind(targets)}; a text or a list of texts was expected')
    return LoRAConfig(rank, alpha, dropout, rslora=bool(raw.get('use_rslora')))


def of_module(raw: dict, module: str) -> tuple[int, float]:
    """(rank, alpha) of one module of one layer: the first pattern that matches its name, as PEFT has it."""
    found = []
    for name, default in (('rank_pattern', raw['r']), ('alpha_pattern', raw['lora_alpha'])):
        patterns = _patterns(raw, name)
        found.append(next((value for key, value in patterns.items() if _matches(key, module)), default))
    return found[0], float(found[1])


def is_targeted(raw: dict, module: str) -> bool:
    """Whether PEFT would put an adapter on this module: what it would not is another model than was trained."""
    targets, layers = raw.get('target_modules'), raw.get('layers_to_transform')
    if isinstance(targets, str):
        named = targets == 'all-linear' or re.fullmatch(targets, module) is not None
    else:
        named = targets is None or any(module == t or module.endswith(f'.{t}') for t in targets)
    number = re.search(r'\.(\d+)\.', module)
    if layers is not None and number:
        named = named and int(number[1]) in (layers if isinstance(layers, list) else [layers])
    return named


def _patterns(raw, name):
    patterns = raw.get(name) or {}
    if not isinstance(patterns, dict):
        raise InputError(f'{name} is {kind(patterns)}; an object was expected')
    return patterns


def _matches(pattern, module):
    return re.match(rf'(.*\.)?({pattern})$', module) is not None


def _compiled(pattern, name):
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f'{name}: {pattern!r} is no regular expression ({error})') from error


def _rank(value, name):
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**20:
        raise InputError(f'{name} is {str(value)[:40]!r}; a whole number of at least 1 was expected')
    return value


def _number(value, name):
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f'{name} is {str(value)[:40]!r}; a finite number was expected')
    return float(value)
