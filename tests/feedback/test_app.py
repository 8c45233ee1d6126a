"""The labelling page's server: who is asked what, what is taken, and what is refused."""

import json
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlax_ft.errors import InputError
from rlax_ft.feedback.items import make_item
from rlax_ft.feedback.queue import LEASE_SECONDS, Queue, Task, priority
from rlax_ft.harness.loading import load_script


def identities():
    number = 0
    while True:
        number += 1
        yield f'{number:032x}'


IDS = identities()


def work(page, person, count=1000, **value):
    """Judges so many items or all; returns the rows' items."""
    done = []
    for _ in range(count):
        asked = page.ask(person)
        if 'ticket' not in asked:
            break
        status, answer = page.judge(person, asked, next(IDS), **value)
        assert status == 200, answer
        done.append(asked['item'])
    return done


def test_overlap_duplicates_and_gold_come_at_their_rates(make_page, pairs):
    gold = [make_item(f'gold {i}', [{'text': 'a'}, {'text': 'b'}], purpose='gold', answer=[0, 1]) for i in range(40)]
    page = make_page(pairs(120), overlap=2, duplicate_rate=0.2, gold_rate=0.2)
    page.collection.add(gold)
    for name in ('Ann', 'Bob', 'Cid'):
        work(page, page.login(name))
    rows = page.rows()
    per_item = Counter(row['item'] for row in rows if row['purpose'] == 'item')
    assert len(per_item) == 120 and set(per_item.values()) == {2}
    purposes = Counter(row['purpose'] for row in rows)
    share = {name: purposes[name] / len(rows) for name in purposes}
    assert 0.1 < share['gold'] < 0.3 and 0.08 < share['duplicate'] < 0.26
    again = [(row['annotator'], row['item']) for row in rows if row['purpose'] == 'duplicate']
    once = [(row['annotator'], row['item']) for row in rows if row['purpose'] == 'item']
    assert len(set(again)) == len(again) and set(again) <= set(once) and len(set(once)) == len(once)


def test_sides_are_shuffled_by_seed_and_annotator_and_names_are_hidden(make_page, pairs):
    page = make_page(pairs(200), overlap=2)
    for name in ('Ann', 'Bob'):
        person = page.login(name)
        asked = page.ask(person)
        assert asked.keys() == {'item', 'training', 'prompt', 'responses', 'ticket', 'progress', 'can_undo'}
        told = json.dumps({**asked, 'ticket': asked['ticket'][64:]})  # A signature's digits may spell anything.
        assert 'good' not in told and 'bad' not in told
        work(page, person)
    shown = {(row['annotator'], row['item']): row['shown'][0] for row in page.rows()}
    for name in ('Ann', 'Bob'):
        assert 70 < sum(first for (who, _), first in shown.items() if who == name) < 130
    differ = sum(shown['Ann', item] != shown['Bob', item] for _, item in set(shown) if ('Ann', item) in shown)
    assert differ > 100  # of 400 entries, both ways round


def test_training_comes_first_and_tells_the_answer(make_page, pairs):
    sides = [{'text': 'right'}, {'text': 'wrong'}]
    training = [make_item(f't{i}', sides, purpose='training', answer=[0, 1], why='So it is.') for i in range(3)]
    page = make_page(pairs(2), training=2)
    page.collection.add(training)
    ann = page.login('Ann')
    for number in range(2):
        asked = page.ask(ann)
        assert asked['training'] and asked['progress']['training'] == [number, 2]
        right = 'AB'[asked['responses'].index('right')]
        choice = right if number == 0 else 'tie'
        status, answer = page.judge(ann, asked, next(IDS), choice=choice)
        lesson = answer['lesson']
        assert status == 200 and lesson['right'] == (number == 0) and lesson['why'] == 'So it is.'
        assert lesson['answer'] == [int(text != 'right') for text in asked['responses']]
    asked = page.ask(ann)
    assert not asked['training'] and page.post('undo', {'id': next(IDS)}, ann)[0] == 409
    work(page, ann)
    assert [row['purpose'] for row in page.rows()] == ['training'] * 2 + ['item'] * 2


def test_the_same_judgement_twice_is_one_and_another_one_is_refused(make_page, pairs):
    page = make_page(pairs(3))
    ann, bob = page.login('Ann'), page.login('Bob')
    asked, identity = page.ask(ann), next(IDS)
    assert page.judge(ann, asked, identity)[0] == 200
    assert page.judge(ann, asked, identity)[0] == 200
    status, answer = page.judge(ann, asked, next(IDS))
    assert status == 409 and 'judged this already' in answer['error']
    assert page.judge(bob, asked, next(IDS))[0] == 409  # It was not asked of him.
    assert page.judge(bob, page.ask(bob), identity)[0] == 409
    assert len(page.rows()) == 1


def test_undo_supersedes_and_asks_again(make_page, pairs):
    page = make_page(pairs(3))
    ann = page.login('Ann')
    first, second = work(page, ann, 1), page.ask(ann)['item']
    undo = next(IDS)
    status, answer = page.post('undo', {'id': undo}, ann)
    assert status == 200 and [answer['item']] == first and not answer['can_undo']
    assert page.post('undo', {'id': undo}, ann)[1]['reload']  # Sent twice, it is one.
    assert work(page, ann, 2) == [*first, second]
    assert page.post('undo', {'id': next(IDS)}, ann)[0] == 200
    assert page.post('undo', {'id': next(IDS)}, ann)[0] == 200
    assert page.post('undo', {'id': next(IDS)}, ann)[0] == 409
    assert [row['choice'] for row in page.rows()] == ['A', 'undo', 'A', 'A', 'undo', 'undo']
    assert len(work(page, ann)) == 3


def test_a_server_that_was_started_again_goes_on_where_it_was(make_page, pairs):
    page = make_page(pairs(5), overlap=1)
    ann = page.login('Ann')
    work(page, ann, 2)
    asked = page.ask(ann)
    page.store.close()
    page.__init__(page.path.parent, overlap=1)
    resumed = page.ask(ann, ticket=asked['ticket'])
    assert resumed['item'] == asked['item'] and resumed['responses'] == asked['responses']
    assert page.judge(ann, resumed, next(IDS))[0] == 200
    assert len(work(page, ann)) == 2


def test_what_one_has_is_not_given_to_others_until_he_gives_up():
    clock = [0.0]
    queue = Queue(overlap=1, now=lambda: clock[0])
    queue.add([('a', 'item', float('nan')), ('b', 'item', float('nan'))])
    ann, bob = queue.next('Ann'), queue.next('Bob')
    assert {ann.item, bob.item} == {'a', 'b'} and queue.next('Ann') == ann
    assert queue.next('Cid') is None and queue.waiting('Cid')
    clock[0] = LEASE_SECONDS + 1
    assert queue.next('Cid').item in 'ab'


def test_items_that_others_have_begun_come_first():
    queue = Queue(overlap=2)
    queue.add([(str(i), 'item', float('nan')) for i in range(50)])
    for i in range(5):
        task = queue.next('Ann')
        queue.record(str(i), task, 'Ann', 'A', None)
    begun = set(np_names(queue, 1))
    assert {queue_step(queue, 'Bob') for _ in range(5)} == begun


def np_names(queue, count):
    return [name for name, n in zip(queue.names, queue.counts) if n == count]


def queue_step(queue, who):
    task = queue.next(who)
    queue.record(f'{who}{task.item}', task, who, 'A', None)
    return task.item


def test_strategies():
    assert priority([[1.0], [1.5], [4.0]], 'uncertain') == pytest.approx(0.5)
    assert priority([[1.0, 3.0], [0.0, 0.0]], 'disagree') == pytest.approx(-1.0)
    queue = Queue()
    names = {'far': [[0.0], [9.0]], 'near': [[1.0], [1.1]], 'middle': [[0.0], [2.0]], 'unknown': None}
    queue.add([(name, 'item', priority(scores, 'uncertain')) for name, scores in names.items()])
    assert [queue_step(queue, 'Ann')] == ['near']
    queue.add([('unknown', 'item', 0.01), ('far', 'item', 1.0)])  # Scored while people work.
    assert [queue_step(queue, 'Ann') for _ in range(3)] == ['unknown', 'far', 'middle']


@pytest.mark.parametrize(
    ('value', 'word'),
    [
        ({'choice': 'C'}, 'choice'),
        ({'choice': 'ranking', 'ranks': [0, 1]}, 'choice'),
        ({'choice': 'skip'}, 'reason'),
        ({'strength': 8}, 'strength'),
        ({'strength': True}, 'strength'),
        ({'choice': 'tie', 'strength': 3}, 'strength'),
        ({'active_ms': -1}, 'active_ms'),
        ({'active_ms': 2**63}, 'active_ms'),
        ({'active_ms': 0.5}, 'active_ms'),
        ({'ratings': [{'other': 3}, {}]}, 'ratings'),
        ({'ratings': [{'helpful': 6}, {}]}, 'rating'),
        ({'edits': ['x']}, 'edits'),
        ({'edits': [1, None]}, 'edit'),
        ({'note': ['x']}, 'note'),
        ({'note': 'x' * 10_001}, 'note'),
        ({'id': '../../etc/passwd'}, 'id'),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make_page, pairs, value, word):
    page = make_page(pairs(1), criteria=['helpful'])
    ann = page.login('Ann')
    asked = page.ask(ann)
    status, answer = page.judge(ann, asked, next(IDS), **value)
    assert status in (400, 413) and word in answer['error'] and '\n' not in answer['error']
    assert page.rows() == [] and page.ask(ann)['item'] == asked['item']


def test_strength_may_be_required(make_page, pairs):
    page = make_page(pairs(2), strength='required')
    ann = page.login('Ann')
    assert page.judge(ann, page.ask(ann), next(IDS))[0] == 400
    assert page.judge(ann, page.ask(ann), next(IDS), strength=2)[0] == 200
    assert page.judge(ann, page.ask(ann), next(IDS), choice='tie')[0] == 200


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({'origin': 'http://evil.example'}, 403),
        ({'origin': 'null'}, 403),
        ({'origin': None}, 403),
        ({'origin': 'http://127.0.0.1:9999'}, 403),
        ({'sec_fetch_site': 'cross-site'}, 403),
        ({'host': 'evil.example:8600', 'origin': 'http://evil.example:8600'}, 421),  # DNS rebinding
        ({'host': '192.168.1.2:8600', 'origin': 'http://192.168.1.2:8600'}, 421),
        ({'host': None}, 421),
        ({'content_type': 'text/plain'}, 415),
        ({'content_type': 'application/x-www-form-urlencoded'}, 415),
        ({'x_csrf_token': 'f' * 64}, 403),
        ({'x_csrf_token': None}, 403),
        ({'cookie': None}, 401),
        ({'cookie': 'rlax_feedback_8600=' + '0' * 32 + '.416e6e.' + '0' * 64}, 401),
        ({'host': 'localhost:8600', 'origin': 'http://localhost:8600'}, 200),
        ({'sec_fetch_site': 'same-origin'}, 200),
        ({'Host': '127.0.0.1:8600'}, 400),  # Twice: a header's case does not count.
        ({'Origin': 'http://127.0.0.1:8600'}, 400),
    ],
)
def test_who_may_post(make_page, pairs, headers, status):
    page = make_page(pairs(1))
    ann = page.login('Ann')
    asked = page.ask(ann)
    value = {'id': next(IDS), 'ticket': asked['ticket'], 'choice': 'A', 'start_ms': 1, 'end_ms': 2, 'active_ms': 1}
    assert page.post('judge', value, ann, **headers)[0] == status
    assert len(page.rows()) == (status == 200)


def test_a_token_is_needed_beyond_this_machine(make_page, pairs):
    page = make_page(pairs(1), token='correct horse', host='0.0.0.0')
    assert page.post('login', {'name': 'Ann', 'token': 'wrong'})[0] == 403
    ann = page.login('Ann', 'correct horse')
    assert 'ticket' in page.ask(ann)
    by_address = {'host': '192.168.1.2:8600', 'origin': 'http://192.168.1.2:8600'}
    assert page.post('next', {}, ann, **by_address)[0] == 200
    assert page.post('next', {}, ann, host='evil.example', origin='http://evil.example')[0] == 421
    other = make_page(pairs(1), token='another token', host='0.0.0.0')
    assert other.post('next', {}, ann)[0] == 401


@pytest.mark.parametrize(
    'path',
    [
        '/static/../app.py',
        '/static/..%2fapp.py',
        '/static/%2e%2e/app.py',
        '/static//etc/passwd',
        '/static/...',
        '/static/app.py',
        '/feedback.sqlite',
        '/static/style.css/../../store.py',
        '/api',
        '/\x00',
    ],
)
def test_no_path_leads_outside(make_page, path):
    status, headers, body = make_page().request('GET', path, [(b'host', b'localhost')])
    assert status == 404 and b'import' not in body and b"default-src 'none'" in headers[b'content-security-policy']


def test_headers_cookies_and_sizes(make_page, pairs):
    page = make_page(pairs(1))
    for path in ('/', '/stats', '/static/app.js', '/api/session', '/nowhere'):
        _, headers, body = page.request('GET', path, [(b'host', b'localhost')])
        policy = headers[b'content-security-policy'].decode()
        assert "script-src 'self'" in policy and 'unsafe' not in policy and headers[b'x-frame-options'] == b'DENY'
        assert (
            b' style=' not in body and b'onclick' not in body and b'http://' not in body.replace(b'http://www.w3', b'')
        )
    pairs_of = [(b'host', b'localhost'), (b'origin', b'http://localhost'), (b'content-type', b'application/json')]
    status, headers, _ = page.request('POST', '/api/login', pairs_of, b'{"name": "Ann"}')
    cookie = headers[b'set-cookie'].decode().lower()
    assert status == 200 and 'samesite=strict' in cookie and 'httponly' in cookie
    assert page.request('POST', '/api/login', pairs_of, b'{"name": "' + b'x' * 5_000_000 + b'"}')[0] == 413
    assert page.request('POST', '/api/login', pairs_of, b'[' * 100_000)[0] == 400
    for name in ('', ' ', 'x' * 65, 'a\nb\x00', None, 3):
        assert page.post('login', {'name': name})[0] == 400


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3)
)
VALUES = st.recursive(ODD, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)
FIELDS = st.sampled_from(
    ['id', 'ticket', 'choice', 'ranks', 'strength', 'ratings', 'edits', 'note', 'reason', 'name', 'token', 'start_ms']
)


def test_no_request_whatever_gives_a_500(make_page, pairs):
    page = make_page(pairs(3), criteria=['helpful'])
    ann = page.login('Ann')
    ticket = page.ask(ann)['ticket']
    names = st.sampled_from(['/api/judge', '/api/next', '/api/undo', '/api/login', '/api/session', '/api/stats', '/'])
    header = st.tuples(st.binary(max_size=12).map(bytes.lower), st.binary(max_size=30))
    found = Counter()

    @settings(
        max_examples=int(os.environ.get('FUZZ', 250)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(
        st.sampled_from(['GET', 'POST', 'PUT', 'HEAD', 'OPTIONS', 'X']),
        st.one_of(names, st.text(max_size=20).map(lambda t: '/' + t)),
        st.lists(header, max_size=3),
        st.one_of(st.binary(max_size=60), st.dictionaries(FIELDS, VALUES, max_size=6)),
        st.booleans(),
    )
    # What chance alone might not reach: a judgement that is none, a page, no page, and a method that a page has not.
    @example('POST', '/api/judge', [], {'choice': 'nonsense'}, True)
    @example('GET', '/', [], b'', False)
    @example('GET', '/nothing', [], b'', False)
    @example('PUT', '/', [], b'', True)
    def one(method, path, extra, body, inside):
        headers = [(b'host', b'127.0.0.1:8600'), (b'origin', b'http://127.0.0.1:8600')]
        headers += [(b'content-type', b'application/json'), *extra]
        if inside:
            headers += [(b'cookie', ann['cookie'].encode()), (b'x-csrf-token', ann['csrf'].encode())]
        if isinstance(body, dict):
            body = json.dumps(
                {'ticket': ticket, 'choice': 'A', 'start_ms': 1, 'end_ms': 2, 'active_ms': 1, **body}
            ).encode()
        status = page.request(method, path, headers, body)[0]
        found[status] += 1
        assert status < 500

    one()
    assert found.keys() >= {200, 400, 404, 405}


def test_live_statistics_name_no_policy(make_page, pairs):
    page = make_page(pairs(4), overlap=2)
    for name in ('Ann', 'Bob'):
        work(page, page.login(name))
    ann = page.login('Ann')
    headers = [(b'host', b'localhost'), (b'cookie', ann['cookie'].encode())]
    status, _, body = page.request('GET', '/api/stats', headers)
    stats = json.loads(body)
    assert status == 200 and ['items complete', 4, ''] in stats['numbers'] and b'good' not in body
    assert [row[0][0] for row in stats['annotators']['rows']] == ['Ann', 'Bob']
    assert page.request('GET', '/api/stats', headers[:1])[0] == 401


def test_flags_that_do_not_fit_are_one_line(tmp_path):
    script = load_script('experiments/collect_feedback.py')

    def refused(message, **given):
        with pytest.raises(InputError, match=message) as caught:
            script.collect(script.CollectFeedbackSettings(**{'out': str(tmp_path / 'f.sqlite'), **given}))
        assert '\n' not in str(caught.value)

    (tmp_path / 's.jsonl').write_text('{"prompt": "p", "completions": ["a", "b"]}\n')
    samples = (str(tmp_path / 's.jsonl'),)
    refused(r'--host=0.0.0.0: others can reach it; give --token', host='0.0.0.0', samples=samples)
    refused(r'--host=::: others can reach it', host='::', samples=samples)
    refused('--token: too short', token='short', samples=samples)
    refused('--samples: give a JSONL')
    refused('--out=.*: give a file that ends in .sqlite', out=str(tmp_path / 'f.txt'), samples=samples)
    refused('no such file; there is nothing to export', export='x.jsonl')
    refused('--guidelines=nowhere.md: cannot be read', guidelines='nowhere.md', samples=samples)
    refused('--task, --data: have no effect without --run', task='reviews', samples=samples)
    refused('--reward_model: has no effect under --strategy=random', reward_model=('x',), samples=samples)
    refused('one reward model cannot disagree', reward_model=('x',), strategy='disagree', samples=samples)
    refused('holds no model', run=('nowhere',), task='reviews')
    refused('a gold item needs its answer', gold=samples[0], samples=samples)


def test_tasks_are_what_tickets_say():
    from rlax_ft.feedback.security import Keys

    keys, task = Keys('secret', 'token'), Task('an item', 'duplicate', 1)
    ticket = keys.ticket('Ann', task)
    assert keys.task('Ann', ticket) == task and keys.task('Bob', ticket) is None
    assert (
        keys.task('Ann', ticket.replace('duplicate', 'gold')) is None
        and Keys('secret', 'x').task('Ann', ticket) is None
    )
