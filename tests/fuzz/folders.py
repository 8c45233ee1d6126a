"""Mutated model folders: configuration, index, weights, links and names that lead outside. A model, or one line."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import values

from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.hf.weights import write_params
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import reward_params
from rlax_ft.models.transformer import init_params

FOLDERS: dict[str, Path] = {}


def folders():
    """A whole one, one in shards, and a reward model."""
    if not FOLDERS:
        root = Path(tempfile.mkdtemp(prefix='fuzz-folders-'))
        tokenizer = train_tokenizer('bytes', ['a'])
        config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=16)
        params = init_params(config, jax.random.key(0))
        save_pretrained(root / 'whole', config, params, tokenizer)
        save_pretrained(root / 'reward', config, reward_params(params, jax.random.key(1)), tokenizer)
        shutil.copytree(root / 'whole', root / 'shards')
        write_params(root / 'shards', config, params, shard_bytes=30_000)
        FOLDERS.update({name: root / name for name in ('whole', 'reward', 'shards')})
    return FOLDERS


def mutation(rng, workdir):
    """Mutates a file of a folder, or has it lead outside, and loads the folder."""
    source = rng.choice(list(folders().values()))
    folder = workdir / 'model'
    shutil.copytree(source, folder)
    if rng.random() < 0.15:
        leads = lead_outside(rng, folder, workdir.parent / 'outside')
        load_pretrained(folder)
        return f'outside: {leads} was read'
    files = [path for path in sorted(folder.iterdir()) if path.name not in ('tokenizer.json', 'tokenizer_config.json')]
    path = rng.choice(files)
    if path.suffix == '.safetensors' and rng.random() < 0.7:
        mutate_header(rng, path)
    else:
        values.write_mutated(rng, path)
    load_pretrained(folder)
    return None


def lead_outside(rng, folder, outside):
    """Moves a file out, and has its name or a link lead there."""
    index = folder / 'model.safetensors.index.json'
    if index.exists() and rng.random() < 0.6:
        said = json.loads(index.read_text())
        name = rng.choice(list(said['weight_map']))
        file = said['weight_map'][name]
        plant(folder / file, outside / file)
        said['weight_map'][name] = rng.choice((f'../../outside/{file}', str(outside / file), f'./../../outside/{file}'))
        index.write_text(json.dumps(said))
        return said['weight_map'][name]
    file = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    plant(file, outside / file.name)
    file.unlink()
    file.symlink_to(rng.choice((Path('../../outside') / file.name, outside / file.name)))
    return f'{file.name} -> outside'


def plant(file, place):
    """Puts a file outside, with the time that mutate.py knows."""
    shutil.copy(file, place)
    os.utime(place, (1_000_000, 1_000_000))


def mutate_header(rng, path):
    """A safetensors header, mutated as JSON, with its length in front."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    what = rng.random()
    if what < 0.15:
        text = rng.choice(('[]', 'null', 'NaN', '{}', '[' * 10_000, '{"a":' * 10_000 + '1' + '}' * 10_000))
    else:
        text = json.dumps(values.mutated(rng, header, ('__metadata__', 'lm_head.weight', 'x')))
    length = len(text.encode()) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1))
    path.write_bytes(
        length.to_bytes(8, 'little') + text.encode() + content[8 + int.from_bytes(content[:8], 'little') :]
    )
