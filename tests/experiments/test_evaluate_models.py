"""evaluate.py on tiny models: policies against themselves, judges against hand-made comparisons, mistakes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.lm_eval import HarnessModel
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.scoring import sequence_logps
from rlax_ft.models.transformer import Transformer
from rlax_ft.types import TokenBatch

SCRIPTS = Path(__file__).parents[2] / 'experiments'
script = load_script(SCRIPTS / 'evaluate.py')
JUDGE = """
def shorter(records, first, second):
    return [0.5 if len(a) == len(b) else float(len(a) < len(b)) for a, b in zip(first, second)]

def first_place(records, first, second):
    return [1.0] * len(first)

def wrong(records, first, second):
    return [2.0] * len(first)

def words(prompt, completion):
    return len(completion.split())
"""


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp('evaluate')
    tiny = {'max_steps': 2, 'batch_size': 8}
    sft, rm = load_script(SCRIPTS / 'sft.py'), load_script(SCRIPTS / 'reward_model.py')
    sft.train(sft.SFTSettings(out=f'{folder}/sft', model='tiny', demonstrations=50, **tiny))
    rm.train(rm.RewardModelSettings(out=f'{folder}/rm', init_from=f'{folder}/sft', comparisons=8, **tiny))
    (folder / 'judge.py').write_text(JUDGE)
    pairs = [
        {'prompt': 'the plot', 'chosen': 'was funny .', 'rejected': 'was not very dull .', 'subset': 'short'},
        {'prompt': 'the cast', 'chosen': 'was warm .', 'rejected': 'was not flat .', 'subset': 'short'},
        {'prompt': 'the music', 'chosen': 'was very warm .', 'rejected': 'was flat .', 'subset': 'long'},
    ]
    (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)) + '\n')
    return folder


def run(base, out, **given):
    return script.evaluate(script.EvaluateSettings(out=f'{base}/{out}', **given))['models']


def test_policies_against_themselves(base):
    path = f'{base}/sft'
    how = dict(task='reviews', reference=path, prompts=12, samples=2, pass_at='1,2', right=-100.0, batch_size=8)
    first, same = run(base, 'samples', models=f'a={path},b={path}', **how)
    assert first['samples'] == 24 and abs(first['kl']) < 1e-4 and 'win_rate' not in first
    assert first['pass@1'] == first['pass@2'] == 1.0 and first['gold_low'] <= first['gold'] <= first['gold_high']
    # The same seed draws the same samples: all are ties, at any length.
    assert same['win_rate'] == 0.5 and same['tied'] == 1.0 and same['lc_win_rate'] == pytest.approx(0.5)
    report = (base / 'samples/report.md').read_text()
    assert '| a |' in report and 'pass@2' in report and '50.0% (50.0% to 50.0%)' in report
    assert (base / 'samples/models.png').read_bytes()[:4] == b'\x89PNG'
    lines = (base / 'samples/models/b/samples.jsonl').read_text().splitlines()
    assert len(lines) == 24 and {'prompt', 'completion', 'gold', 'kl'} <= json.loads(lines[0]).keys()


def test_a_judge_that_goes_by_place_is_found_out(base):
    path = f'{base}/sft'
    how = dict(task='reviews', prompts=8, batch_size=8, reward=f'{base}/judge.py:words')
    _, same = run(base, 'judged', models=f'a={path},b={path}', judge=f'{base}/judge.py:first_place', **how)
    assert same['position_bias'] == 0.5 and same['consistency'] == 0.0 and same['win_rate'] == 0.5


def test_judges_on_comparisons(base):
    how = dict(on='pairs', data=f'{base}/pairs.jsonl', max_prompt_tokens=4, max_new_tokens=24, batch_size=2)
    models = f'{base}/rm,sft={base}/sft'
    judges = dict(reward=f'{base}/judge.py:words', judge=f'{base}/judge.py:shorter', reference=f'{base}/sft')
    rm, policy, words, shorter = run(base, 'pairs', models=models, **judges, **how)
    assert [r['kind'] for r in (rm, policy, words, shorter)] == ['reward model', 'implicit reward', 'function', 'judge']
    # The reference's own implicit reward is 0: each pair is a tie.
    assert policy['accuracy'] == 0.5 and policy['ece'] == pytest.approx(0.0)
    # Words: only the third pair has the longer answer chosen; the judge of two texts says the opposite of each.
    assert (
        words['accuracy'] == pytest.approx(1 / 3) and words['accuracy_longer'] == 1 and words['accuracy_shorter'] == 0
    )
    assert shorter['accuracy'] == pytest.approx(2 / 3) and shorter['position_bias'] == 0 and shorter['consistency'] == 1
    by_subset = {row['subset']: row['accuracy'] for row in words['subsets']}
    assert by_subset == {'short': 0.0, 'long': 1.0, 'all': pytest.approx(1 / 3), 'mean of subsets': 0.5}
    report = (base / 'pairs/report.md').read_text()
    assert '## Accuracy by subset' in report and '| short | 2 |' in report
    assert (base / 'pairs/reliability.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(), r'--models: give at least one'),
        (dict(on='pairs', models='{base}/rm'), r'--on=pairs: give a file of comparisons'),
        (dict(on='pairs', models='{base}/rm', samples=2, data='x'), r'--samples=2: --on=pairs has no use'),
        (dict(models='{base}/nowhere', task='reviews'), r'--models=.*nowhere: holds no model'),
        (dict(models='{base}/rm', task='reviews'), r'rm is a reward model, which writes nothing'),
        (dict(models='{base}/sft,{base}/sft', task='reviews'), r"sft' stands there twice"),
        (dict(models='a={base}/sft:min', task='reviews'), r'--models=.*sft:min: no ensemble of reward models'),
        (
            dict(
                on='pairs', models='{base}/rm:lcb=2', data='{base}/pairs.jsonl', max_prompt_tokens=4, max_new_tokens=24
            ),
            r"a single reward model, which has nothing to reduce by 'lcb=2'",
        ),
        (dict(models='{base}/sft', data='{base}/pairs.jsonl', pass_at='1'), r'--pass_at=1: give the --reward'),
        (dict(models='{base}/sft', task='reviews', prompts=4, pass_at='3'), r'pass@3 of 1 attempts'),
        (dict(models='{base}/sft', lm_eval='arc', task='reviews'), r'--task=reviews: --lm_eval has no use'),
        (
            dict(models='a={base}/sft,b={base}/sft', task='reviews', prompts=4, judge='{base}/judge.py:wrong'),
            r'--judge=.*wrong: gave 2 to 2',
        ),
    ],
)
def test_mistakes(base, tmp_path, given, message):
    given = {k: v.format(base=base) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(InputError, match=message):
        script.evaluate(script.EvaluateSettings(out=f'{tmp_path}/run', batch_size=8, **given))


def test_without_the_harness_the_message_says_what_to_install(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    with pytest.raises(InputError, match=r"--lm_eval: needs lm_eval .*pip install 'rlax_ft\[lm_eval\]'"):
        settings = script.EvaluateSettings(out=f'{tmp_path}/run', models=f'{base}/sft', lm_eval='arc_easy')
        script.evaluate(settings)


@pytest.mark.slow
def test_what_the_harness_asks_is_what_the_trainer_computes(base):
    config, params, tokenizer = load_pretrained(base / 'sft/model')
    model = HarnessModel(config, params, tokenizer, batch_size=2)
    asked = [('the plot ', 'was funny .'), ('the cast was', ' very warm'), ('the', 'music was dull and the plot')]
    found = model.continuations([model.split(*pair) for pair in asked])
    for (context, continuation), (logp, greedy) in zip(asked, found):
        known, new = model.split(context, continuation)
        tokens = np.asarray([known + new])
        mask = np.zeros(tokens.shape, np.float32)
        mask[0, len(known) :] = 1
        ones = np.ones_like(tokens)
        rows = TokenBatch(tokens, mask, np.cumsum(ones, axis=1) - 1, ones)
        apply = Transformer(config).apply
        assert logp == pytest.approx(float(sequence_logps(apply, {'params': params}, rows)[0]), abs=1e-4)
        logits = np.asarray(apply({'params': params}, apply({'params': params}, tokens)[0], method='unembed'))
        assert greedy == bool((np.argmax(logits, -1)[0, len(known) - 1 : -1] == new).all())
    whole = model.complete([('the plot', {'until': [], 'max_gen_toks': 6})])[0]
    stop = whole.split()[1]
    cut = model.complete([('the plot', {'until': [stop], 'max_gen_toks': 6}), ('the', {'max_gen_toks': 3})])
    assert cut[0] == whole[: whole.index(stop)] and len(cut[1].split()) <= 3


def test_a_task_of_the_harness(base, tmp_path):
    pytest.importorskip('lm_eval')
    docs = [{'start': 'the plot was', 'choices': ['funny .', 'very dull .'], 'label': i % 2} for i in range(6)]
    (tmp_path / 'docs.jsonl').write_text('\n'.join(map(json.dumps, docs)) + '\n')
    source = f'dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/docs.jsonl\ntest_split: test\n'
    choice = (
        'output_type: multiple_choice\ndoc_to_text: "{{start}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
    )
    (tmp_path / 'mood.yaml').write_text(f'task: mood\n{source}{choice}metric_list:\n  - metric: acc\n')
    whole = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{start}}"\n'
    (tmp_path / 'whole.yaml').write_text(f'task: whole\n{source}{whole}metric_list:\n  - metric: word_perplexity\n')
    how = dict(lm_eval='mood,whole', lm_eval_tasks=str(tmp_path), batch_size=4)
    (found,) = run(base, 'harness', models=f'{base}/sft', **how)
    # One of two answers is the likelier everywhere, and half of the labels name it.
    assert found['mood/acc'] == 0.5
    config, params, tokenizer = load_pretrained(base / 'sft/model')
    model = HarnessModel(config, params, tokenizer)
    logp = model.continuations([(model.start, model.encode('the plot was'))])[0][0]
    assert found['whole/word_perplexity'] == pytest.approx(np.exp(-logp / 3), rel=1e-4)
    with pytest.raises(InputError, match=r"--lm_eval=nothing: lm_eval knows no task 'nothing'"):
        run(base, 'none', models=f'{base}/sft', lm_eval='nothing')
