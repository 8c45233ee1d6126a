"""What training makes of judgements: soft labels, margins, rankings, edits; what is left out is counted."""

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlax_ft.data.feedback import strength_margin
from rlax_ft.data.records import read_demonstrations, read_judged, read_pairs, read_prompts, read_rankings
from rlax_ft.errors import InputError
from rlax_ft.feedback.items import read_items
from rlax_ft.feedback.judgements import judged_by, judgement
from rlax_ft.feedback.store import Store
from rlax_ft.harness.annotators import judgements_of
from rlax_ft.harness.feedback_sampling import SamplingSettings, model_scorer, sampling_job, scoring_job
from rlax_ft.harness.loading import load_script
from rlax_ft.rewards.judge import judge
from rlax_ft.tasks import get_task

SCRIPTS = Path(__file__).parents[2] / 'experiments'


def row(item, annotator, ranks, **changes):
    texts = [f'{item} answer {i}' for i in range(len(ranks or changes.get('texts', 'ab')))]
    made = judgement(f'{item}?', texts, ranks or [0] * len(texts), annotator, item=item, fields={'topic': 'x'})
    changes.pop('texts', None)
    return {**made, 'id': f'{item}/{annotator}/{len(changes)}', 'ranks': ranks, **changes}


def written(tmp_path, rows, name='j.jsonl'):
    (tmp_path / name).write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return tmp_path / name


def test_votes_become_soft_labels_and_strengths_margins(tmp_path, caplog):
    path = written(
        tmp_path,
        [
            row('one', 'Ann', [0, 1], strength=7),
            row('one', 'Bob', [0, 1], strength=3),
            row('one', 'Cid', [1, 0], strength=7),
            row('two', 'Ann', [1, 0]),
            row('three', 'Ann', [0, 0]),
            row('four', 'Ann', [0, 1]),
            row('four', 'Bob', [0, 0]),
            row('five', 'Ann', None, choice='both_bad'),
            row('six', 'Ann', None, choice='skip', reason='hard'),
            row('seven', 'Ann', [0, 1], purpose='gold'),
        ],
    )
    one, two, four = read_pairs(path)
    assert (one['chosen'], one['rejected']) == ('one answer 0', 'one answer 1')
    assert one['label'] == pytest.approx(2 / 3) and one['margin'] == pytest.approx((3 + 1) / 2)
    assert one['annotators'] == ['Ann', 'Bob', 'Cid'] and one['topic'] == 'x' and one['item'] == 'one'
    assert two['chosen'] == 'two answer 1' and not two.keys() & {'label', 'margin'} and two['annotator'] == 'Ann'
    assert four['label'] == 0.75
    assert '1 both bad, 1 of gold items, 1 skipped, 1 tied' in caplog.text
    weights = lambda rows: {'Ann': 1.0, 'Bob': 0.5, 'Cid': 0.0}  # noqa: E731
    assert 'label' not in read_pairs(path, weights)[0] and read_pairs(path, weights)[2]['label'] == pytest.approx(5 / 6)
    assert [strength_margin(s) for s in (1, 4, 7)] == [0.0, 1.5, 3.0]


def test_repetitions_of_one_annotator_are_one_vote(tmp_path):
    rows = [row('i', 'Ann', [0, 1]), row('i', 'Ann', [1, 0], purpose='duplicate'), row('i', 'Bob', [0, 1])]
    (pair,) = read_pairs(written(tmp_path, rows))
    assert pair['label'] == 0.75


def test_what_was_undone_does_not_count(tmp_path, caplog):
    first = row('i', 'Ann', [0, 1])
    undo = row('i', 'Ann', None, choice='undo', supersedes=first['id'])
    (pair,) = read_pairs(written(tmp_path, [first, undo, row('i', 'Ann', [1, 0], note='again', start_ms=1)]))
    assert pair['chosen'] == 'i answer 1' and 'label' not in pair and '1 undone' in caplog.text
    with pytest.raises(InputError, match='not one of 2 judgements prefers something'):
        read_pairs(written(tmp_path, [first, undo]))


def test_edits_are_demonstrations_and_pairs(tmp_path):
    rows = [
        row('i', 'Ann', [0, 1], edits=['Better.', None]),
        row('j', 'Ann', None, choice='both_bad', edits=[None, 'Good.']),
        row('k', 'Ann', [1, 0], edits=['k answer 0', None]),  # not changed at all
    ]
    path = written(tmp_path, rows)
    sides = [(pair['chosen'], pair['rejected']) for pair in read_pairs(path)]
    assert sides == [
        ('i answer 0', 'i answer 1'),
        ('Better.', 'i answer 0'),
        ('Good.', 'j answer 1'),
        ('k answer 1', 'k answer 0'),
    ]
    assert [d['completion'] for d in read_demonstrations(path)] == ['Better.', 'Good.', 'k answer 1']
    assert [(r['completions'], r['ranks']) for r in read_rankings(path)][1] == (['Better.', 'i answer 0'], [0, 1])
    assert [p['prompt'] for p in read_prompts(path)] == ['i?', 'j?', 'k?']
    assert [j['label'] for j in read_judged(path)] == [True, False] * 4


def test_rankings_by_several_annotators(tmp_path):
    rows = [row('i', 'Ann', [0, 2, 1]), row('i', 'Bob', [0, 1, 1]), row('i', 'Cid', [2, 1, 0])]
    path = written(tmp_path, rows)
    assert [r['ranks'] for r in read_rankings(path)] == [[0, 2, 1], [0, 1, 1], [2, 1, 0]]
    labels = {(p['chosen'][-1], p['rejected'][-1]): p['label'] for p in read_pairs(path)}
    # 0 before 1: yes, yes, no. 0 before 2: yes, yes, no. 1 before 2: no, tie, no.
    assert labels == {
        ('0', '1'): pytest.approx(2 / 3),
        ('0', '2'): pytest.approx(2 / 3),
        ('2', '1'): pytest.approx(5 / 6),
    }


def test_a_store_is_read_as_its_export(make_page, pairs, tmp_path):
    page = make_page(pairs(6), overlap=2)
    for name in ('Ann', 'Bob'):
        person = page.login(name)
        for i in range(6):
            page.judge(person, page.ask(person), f'{ord(name[0]) * 100 + i:032x}', choice='AB'[i % 2], strength=1 + i)
    rows = page.rows()
    exported = written(tmp_path, rows)
    for read in (read_pairs, read_rankings, read_demonstrations, read_prompts):
        assert read(page.path) == read(exported)
    assert len(read_rankings(page.path)) == 12


def test_rows_and_other_records_may_stand_in_one_file(tmp_path):
    plain = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}
    pairs = read_pairs(written(tmp_path, [plain, row('i', 'Ann', [0, 1])]))
    assert [pair['chosen'] for pair in pairs] == ['a', 'i answer 0']


def test_conversations_and_their_edits(tmp_path):
    messages = [[{'role': 'assistant', 'content': text}] for text in 'ab']
    made = judgement([{'role': 'user', 'content': 'q'}], messages, [0, 1], 'Ann') | {'edits': [None, 'c']}
    path = written(tmp_path, [made])
    assert [pair['chosen'][0]['content'] for pair in read_pairs(path)] == ['a', 'c']
    assert read_demonstrations(path)[0]['completion'] == [{'role': 'assistant', 'content': 'c'}]


@pytest.mark.parametrize(
    ('gives', 'message'),
    [
        (lambda records, candidates: [[0, 1]], r'gave 1 judgements of 2 records'),
        (lambda records, candidates: [{'ranks': [0]}] * 2, r'record 1: 2 ranks were expected'),
        (lambda records, candidates: ['good', 'bad'], r'record 1: 2 ranks were expected'),
        (lambda records, candidates: 1 / 0, r'raised ZeroDivisionError'),
    ],
)
def test_an_annotator_that_gives_no_ranking_is_one_line(gives, message):
    with pytest.raises(InputError, match=message):
        judged_by(gives, 'mine', [{'prompt': 'p'}] * 2, [['a', 'b']] * 2)
    rows = judged_by(lambda r, c: [{'ranks': [1, 0]}, [0, 0]], 'mine', [{'prompt': 'p', 'x': 1}] * 2, [['a', 'b']] * 2)
    assert [r['choice'] for r in rows] == ['B', 'tie'] and rows[0]['fields'] == {'x': 1} and rows[0]['item'] == '0'


def by(annotator, records, candidates, task=None):
    settings = SimpleNamespace(annotator=annotator, annotator_noise=0.0, seed=0)
    return [row['ranks'] for row in judgements_of(settings, task, records, candidates)]


def test_rules_and_functions_with_options_are_annotators(tmp_path, monkeypatch):
    records = [{'prompt': 'p', 'answer': '7'}, {'prompt': 'q', 'answer': '8'}]
    candidates = [['It is 6.', 'It is 7.', '7'], ['8', '9', '10']]
    assert by('last_number', records, candidates) == [[1, 0, 0], [0, 1, 1]]
    (tmp_path / 'mine.py').write_text(
        'def by_length(records, candidates, sign=1):\n'
        '    return [{"ranks": [sorted(sign * len(t) for t in some).index(sign * len(c)) for c in some]}\n'
        '            for some in candidates]\n'
    )
    monkeypatch.chdir(tmp_path)
    assert by('mine.py:by_length', records, candidates) == [[1, 1, 0], [0, 0, 1]]
    assert by('mine.py:by_length(sign=-1)', records, candidates) == [[0, 0, 1], [1, 1, 0]]
    for wrong, message in (
        ('nobody', r'--annotator=nobody: no such annotator or folder; give simulated, human'),
        ('mine.py:by_length(mark=1)', "--annotator=.*takes no option 'mark'"),
        ('judge', r'--annotator=judge: needs model, as in judge\(model=...\)'),
    ):
        with pytest.raises(InputError, match=message) as caught:
            by(wrong, records, candidates)
        assert '\n' not in str(caught.value)


def test_training_reads_a_store_and_the_loop_waits_for_people(make_page, pairs, tmp_path, monkeypatch, capsys):
    """The loop with people: sample, stop, judge on the page, go on; then a reward model learns from the store."""
    monkeypatch.chdir(tmp_path)
    collect, sft = load_script(SCRIPTS / 'collect.py'), load_script(SCRIPTS / 'sft.py')
    tiny = dict(max_steps=2, batch_size=8, learning_rate=1e-3)
    sft.train(sft.SFTSettings(out='sft', task='reviews', model='tiny', demonstrations=50, **tiny))
    settings = collect.CollectSettings(
        out='asked', task='reviews', init_from='sft', annotator='human', comparisons=6, candidates=2
    )
    assert collect.collect(settings) == {}
    assert 'collect_feedback.py --samples=asked/to_judge.jsonl --out=asked/feedback.sqlite' in capsys.readouterr().out
    page = make_page()
    page.collection.add(read_items(['asked/to_judge.jsonl']))
    ann = page.login('Ann')
    for i in range(6):
        page.judge(ann, page.ask(ann), f'{i:032x}', choice='AB'[i % 2], strength=4)
    with Store('asked/feedback.sqlite') as store:
        store.add_items(read_items(['asked/to_judge.jsonl']))
        rows = page.rows()
        store.append(rows[:5])
        assert collect.collect(settings) == {} and '5 of 6 items are judged' in capsys.readouterr().out
        store.append(rows[5:])
        assert collect.collect(settings)['judgements'] == 6
    # Two runs against each other, sampled in the background.
    sampled = make_page()
    runs = SamplingSettings(run=('sft', 'sft/checkpoints/2'), task='reviews', comparisons=4)
    sampling_job(runs, sampled.collection)(threading.Event())
    names = sampled.collection.queue.names
    item = sampled.store.item(names[0])
    assert len(names) <= 4 and item['policies'] == ['sft', 'sft'] and item['checkpoints'] == [None, '2']
    reward_model = load_script(SCRIPTS / 'reward_model.py')
    given = dict(init_from='sft', task='reviews', data='asked/feedback.sqlite', **tiny)
    summary = reward_model.train(reward_model.RewardModelSettings(out='rm', **given))
    assert summary['train_pairs'] == 5  # one of six is held out
    # It says what is asked next, while people work.
    uncertain = make_page()
    uncertain.collection.strategy = 'uncertain'
    uncertain.collection.add(read_items(['asked/to_judge.jsonl']))
    stop = threading.Event()
    job = scoring_job(SamplingSettings(reward_model=('rm',), task='reviews'), uncertain.collection)
    scoring = threading.Thread(target=job, args=(stop,))
    scoring.start()
    while scoring.is_alive() and np.isnan(uncertain.collection.queue._priority).any():
        stop.wait(0.05)
    stop.set()
    scoring.join()
    items = [uncertain.store.item(name) for name in uncertain.collection.queue.names]
    margins = np.abs(np.subtract(*model_scorer(Path('rm/model'), get_task('reviews'))(items).T))
    ann, order = uncertain.login('Ann'), []
    for i in range(6):
        order.append(uncertain.ask(ann)['item'])
        uncertain.judge(ann, uncertain.ask(ann), f'{i:032x}')
    assert order == [items[i]['id'] for i in np.argsort(margins)] and len(set(margins)) == 6
    # A language model is an annotator: the log-odds of two words after the review.
    asked = [{'prompt': 'the plot was'}, {'prompt': 'the cast'}]
    texts = [['dull .', 'superb .', 'awful .'], ['was warm .', 'was warm .', 'was not flat .']]
    question = dict(model='sft', template='{prompt} {completion}', good='brilliant', bad='awful')
    odds = np.reshape(judge([r for r in asked for _ in range(3)], [*texts[0], *texts[1]], **question), (2, 3))
    called = ', '.join(f'{name}={value!r}' for name, value in question.items())
    assert by(f'judge({called})', asked, texts) == [[int((row > own).sum()) for own in row] for row in odds[:1]] + [
        [0, 0, 1] if odds[1, 0] > odds[1, 2] else [1, 1, 0]
    ]
    # The trained reward model is one of the same form.
    judged = collect.collect(
        collect.CollectSettings(out='by_rm', task='reviews', init_from='sft', annotator='rm', comparisons=4)
    )
    first = json.loads(Path('by_rm/judgements.jsonl').read_text().splitlines()[0])
    assert (
        judged['judgements'] == 4
        and read_pairs('by_rm/judgements.jsonl')
        and first.keys() == rows[0].keys()
        and first['annotator'] == 'rm'
    )


def test_rlhf_stops_for_people_and_goes_on_when_enough_is_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rlhf, reached = load_script(SCRIPTS / 'rlhf.py'), []
    make_stage = rlhf.make_stage

    def stop_after_feedback(name, script, recipe, **given):
        after = SimpleNamespace(name=name, run=lambda: reached.append((name, given['data'])))
        return make_stage(name, script, recipe, **given) if name in ('sft', 'feedback') else after

    monkeypatch.setattr(rlhf, 'make_stage', stop_after_feedback)
    settings = rlhf.RLHFSettings(out='run', annotator='human', model='tiny', max_steps=1, comparisons=4)
    assert rlhf.train(settings) == {} and not reached
    said = capsys.readouterr().out
    assert '0 of 4 items are judged' in said and 'again when all are judged' in said
    assert 'collect_feedback.py --samples=run/feedback/to_judge.jsonl --out=run/feedback/feedback.sqlite' in said
    with Store('run/feedback/feedback.sqlite') as store:
        items = list(read_items(['run/feedback/to_judge.jsonl']))
        store.add_items(items)
        for number, item in enumerate(items[:3]):
            assert rlhf.train(settings) == {} and f'{number} of 4 items are judged' in capsys.readouterr().out
            content = item['content']
            texts = content['prompt'], content['completions']
            store.append([judgement(*texts, [1, 0, 2, 2], 'Ann', item=item['id'], fields=content['fields'])])
    assert rlhf.train(settings) == {} and not reached and '3 of 4 items are judged' in capsys.readouterr().out
    assert rlhf.train(dataclasses.replace(settings, enough=3)) == {}
    ((name, data),) = reached
    assert name == 'reward_model' and len(read_pairs(data)) == 3 * 5
