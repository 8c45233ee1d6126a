"""ppo.py with rules by name: a weighted sum, and a record whose reward fails costs its group."""

from pathlib import Path

import pytest

from rlax_ft.data.records import write_records
from rlax_ft.harness.loading import load_script
from rlax_ft.training.metrics import read_records

ppo = load_script(Path(__file__).parents[2] / 'experiments/ppo.py')


@pytest.mark.slow
def test_rules_by_name_and_a_group_that_fails(tmp_path, caplog):
    good = [{'question': f'{i} + 1 =', 'answer': f'so it is\n#### {i + 1}'} for i in range(7)]
    write_records(tmp_path / 'data.jsonl', [*good, {'prompt': [{'role': 'user', 'content': 'no answer here'}]}])
    write_records(tmp_path / 'eval.jsonl', good[:2])
    given = dict(data=f'{tmp_path}/data.jsonl', eval_data=f'{tmp_path}/eval.jsonl', tokenizer='bytes', model='tiny')
    given |= dict(max_prompt_tokens=40, max_new_tokens=8, batch_size=16, group_size=2, max_steps=2, report_to='')
    given |= dict(reward="maths*2,regex(pattern='[0-9]')", update_epochs=1)
    ppo.train(ppo.PPOSettings(out=f'{tmp_path}/run', reward_failures=0.2, reward_seconds=20.0, **given))
    for record in read_records(tmp_path / 'run/metrics.jsonl'):
        # All eight records are in each batch, one of them without an answer.
        assert record['rewards/failed_groups'] == 1
        total = 2 * record['rewards/maths/mean'] + record["rewards/regex(pattern='[0-9]')/mean"]
        assert 0 <= record['objective/scores'] <= total
    assert '1 of 8 groups have no reward and teach nothing: --reward=maths: ' in caplog.text
