"""converse.py: demonstrations for sft.py, conversations of what it trained, GRPO on them, one's own environment."""

import dataclasses
import json
from pathlib import Path

import pytest

from rlax_ft.data.records import write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.conversation_groups import conversation_records
from rlax_ft.harness.conversations import text_environment
from rlax_ft.harness.loading import load_script
from rlax_ft.training.metrics import read_records

SCRIPTS = Path(__file__).parents[2] / 'experiments'
converse = load_script(SCRIPTS / 'converse.py')
sft = load_script(SCRIPTS / 'sft.py')
grpo = load_script(SCRIPTS / 'grpo.py')
LENGTHS = dict(max_prompt_tokens=32, max_new_tokens=64)


@pytest.mark.slow
def test_from_demonstrations_to_conversations(tmp_path, monkeypatch):
    shown = converse.ConverseSettings(out=f'{tmp_path}/shown', env='calculator', demonstrations=40)
    assert converse.converse(shown) == {'demonstrations': 40}
    data = f'{tmp_path}/shown/demonstrations.jsonl'
    given = dict(data=data, tokenizer='bytes', model='tiny', max_steps=2, batch_size=8, eval_prompts=4, report_to='')
    sft.train(sft.SFTSettings(out=f'{tmp_path}/sft', **given, **LENGTHS))
    played = dict(init_from=f'{tmp_path}/sft', conversations=3, **LENGTHS)
    summary = converse.converse(converse.ConverseSettings(out=f'{tmp_path}/run', env='calculator', **played))
    assert summary['conversations'] == 3 and summary['optimum'] == 1.0 and 0 <= summary['reward'] <= 1
    talks = read_records(tmp_path / 'run/conversations.jsonl')
    assert len({talk['messages'][0]['content'] for talk in talks}) == 3
    trained_by_groups(tmp_path)
    # One's own, with records of its own, in the working directory.
    page = (Path(__file__).parents[2] / 'docs/text_environments.md').read_text()
    (tmp_path / 'my_talks.py').write_text(page.split('```python\n')[1].split('```')[0])
    write_records(tmp_path / 'numbers.jsonl', [{'number': 3}, {'number': 2}])
    monkeypatch.chdir(tmp_path)
    mine = converse.ConverseSettings(out='mine', env='my_talks.py:counts', data='numbers.jsonl', **played)
    assert converse.converse(mine)['turns'] == 1
    # A folder is a model to talk with, whoever wrote it.
    folder = dict(out='folder', init_from='', model=f'{tmp_path}/sft/model')
    assert converse.converse(dataclasses.replace(mine, **folder))['conversations'] == 3
    asked = grpo.GRPOSettings(env='my_talks.py:counts', data='numbers.jsonl')
    training, held_out = conversation_records(asked, text_environment(asked.env))
    assert sorted(record['number'] for record in training + held_out) == [2, 3]
    shows = dict(demonstrations=3, init_from='', max_prompt_tokens=0, max_new_tokens=0)
    for message, wrong in (
        ('brings no records of its own; give --data', dict(env='my_talks.py:counts')),
        ('--env=chess: no such text environment', dict(env='chess')),
        ('--init_from, --model: give the run folder', dict(env='calculator', init_from='')),
        ('--model=', shows | dict(env='calculator', conversations=256, model=f'{tmp_path}/sft/model')),
        ('--task=sort: has no effect here', dict(env='calculator', task='sort')),
        ('has no demonstrations of its own', shows | dict(env='my_talks.py:counts', conversations=256)),
        ('--conversations=3: has no effect beside --demonstrations', shows | dict(env='calculator')),
    ):
        with pytest.raises(InputError) as caught:
            converse.converse(converse.ConverseSettings(**{'out': 'wrong', **played, **wrong}))
        assert message in str(caught.value)
    assert json.loads((tmp_path / 'run/summary.json').read_text())['turns'] >= 1


def trained_by_groups(folder):
    """GRPO on conversations: what it measures, what it writes down, and what has no effect there."""
    given = dict(env='twenty_questions', init_from=f'{folder}/sft', prompts=8, eval_prompts=3, batch_size=16)
    given |= dict(group_size=2, max_steps=2, learning_rate=1e-3, sample_every=1, eval_every=2, report_to='', **LENGTHS)
    summary = grpo.train(grpo.GRPOSettings(out=f'{folder}/grpo', **given))
    assert summary['steps'] == 2 and -1 <= summary['reward'] < summary['optimum'] < 1
    metrics = read_records(folder / 'grpo/metrics.jsonl')
    assert metrics[1]['eval/reward'] == summary['reward'] and metrics[0]['grad_norm'] > 0
    assert max(m['sampling/sampling_logp_difference/mean'] for m in metrics) < 1e-4
    talks = read_records(folder / 'grpo/samples.jsonl')
    assert [(t['step'], t['evaluated']) for t in talks] == [(1, False)] * 16 + [(2, False)] * 16 + [(2, True)] * 3
    assert all(talk['messages'][0]['role'] == 'user' for talk in talks)
    for wrong in (dict(reward='maths'), dict(curriculum=True), dict(baseline='greedy', scale='none'), dict(ahead=1)):
        with pytest.raises(InputError, match=f'--{next(iter(wrong))}'):
            grpo.train(grpo.GRPOSettings(**{**given, 'out': f'{folder}/wrong', **wrong}))
