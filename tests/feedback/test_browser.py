"""The labelling page in a browser: what the store holds is exactly what was pressed and dragged."""

import os
import re
import shutil
from pathlib import Path

import pytest

from rlax_ft.feedback.items import make_item

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium on this machine')
FLAGS = [
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update'),
]
EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> **bold** [x](javascript:alert(1))'


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """`visit(url, name, **context) -> page` of somebody who has begun; no error may reach the console."""
    contexts, faults = [], []

    def begin(url, name, **options):
        context = browser.new_context(**{'viewport': {'width': 1200, 'height': 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('console', lambda message: faults.append(message.text) if is_fault(message) else None)
        page.goto(url)
        page.fill('#name', name)
        page.press('#name', 'Enter')
        page.wait_for_selector('.response')
        return page

    yield begin
    for context in contexts:
        context.close()
    assert not faults


def is_fault(message):
    # The server ends before the browser does, or a test says that it does not answer.
    return message.type == 'error' and not re.search('ERR_(CONNECTION|FAILED)', message.text)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def saved(page, count):
    """Waits until so many judgements of this annotator are saved."""
    playwright.expect(page.locator('#progress-text')).to_contain_text(f'{count} done', timeout=15_000)


def texts(page):
    return [node.inner_text() for node in page.query_selector_all('.response .body')]


def test_ten_judgements_by_keyboard_alone(make_page, visit, pairs):
    page_of = make_page(pairs(10), criteria=['helpful'])
    keys = [
        (['a'], 'A', None),
        (['b'], 'B', None),
        (['t'], 'tie', None),
        (['x'], 'both_bad', None),
        (['a', '7'], 'A', 7),
        (['b', '1'], 'B', 1),
        (['ArrowLeft', '4'], 'A', 4),
        (['ArrowRight'], 'B', None),
        (['a', 'b', 'a'], 'A', None),
    ]
    expected = []
    with page_of.served() as url:
        page = visit(url, 'Ann')
        for i, (pressed, choice, strength) in enumerate(keys):
            seen = texts(page)
            press(page, *pressed, 'Enter')
            saved(page, i + 1)
            expected.append((seen, choice, strength))
        seen = texts(page)
        press(page, 's')
        page.keyboard.type('too hard')
        press(page, 'Enter')
        page.wait_for_selector('#rest:not([hidden])')
    rows = page_of.rows()
    assert len(rows) == 10
    for row, (seen, choice, strength) in zip(rows, expected):
        assert [row['completions'][i] for i in row['shown']] == seen
        assert (row['choice'], row['strength'], row['annotator']) == (choice, strength, 'Ann')
        winner = {'A': 0, 'B': 1}.get(choice)
        if winner is not None:
            assert row['completions'][row['ranks'].index(0)] == seen[winner] and sorted(row['ranks']) == [0, 1]
        else:
            assert row['ranks'] == ([0, 0] if choice == 'tie' else None)
        assert row['start_ms'] <= row['end_ms'] and 0 <= row['active_ms'] <= row['end_ms'] - row['start_ms'] + 50
    assert (rows[9]['choice'], rows[9]['reason'], rows[9]['ranks']) == ('skip', 'too hard', None)


def test_ratings_note_and_edit(make_page, visit, pairs):
    page_of = make_page(pairs(1), criteria=['helpful', 'true'])
    with page_of.served() as url:
        page = visit(url, 'Ann')
        shown = texts(page)
        page.get_by_label('helpful of response A: 4 of 5').check()
        press(page, 'c', '2', 'Tab', '5')  # helpful of A by a digit, then true of A
        page.get_by_label('helpful of response B: 1 of 5').check()
        press(page, 'b', 'n')
        page.keyboard.type('because')
        press(page, 'Escape', 'e')
        page.keyboard.press('Control+a')
        page.keyboard.type('Mended.')
        press(page, 'Control+Enter')
        page.wait_for_selector('#rest:not([hidden])')
    (row,) = page_of.rows()
    a, b = row['shown']
    assert row['completions'][a] == shown[0] and row['choice'] == 'B' and row['note'] == 'because'
    assert row['ratings'][a] == {'helpful': 2, 'true': 5} and row['ratings'][b] == {'helpful': 1}
    assert row['edits'][b] == 'Mended.' and row['edits'][a] is None


def test_ranking_by_drag_by_digits_and_by_clicks_with_ties(make_page, visit):
    four = [make_item('Rank.', [{'text': f'answer {i} of {n}'} for i in range(4)]) for n in range(3)]
    page_of = make_page(four)
    with page_of.served() as url:
        page = visit(url, 'Ann')
        first = texts(page)
        for chip, tier in ((0, 1), (1, 0), (2, 0), (3, 3)):
            start = page.locator(f'[data-chip="{chip}"]').bounding_box()
            goal = page.locator(f'.tier[data-rank="{tier}"]').bounding_box()
            page.mouse.move(start['x'] + 5, start['y'] + 5)
            page.mouse.down()
            page.mouse.move(goal['x'] + goal['width'] - 8, goal['y'] + goal['height'] / 2, steps=4)
            page.mouse.up()
        page.click('#save')
        saved(page, 1)
        second = texts(page)
        press(page, '4', '1', '2', '1', 'Enter')
        saved(page, 2)
        third = texts(page)
        for tier in (2, 2, 0, 1):  # A click gives the marked response its place, and marks the next.
            page.locator(f'.tier[data-rank="{tier}"] .ordinal').click()
        page.click('#save')
        page.wait_for_selector('#rest:not([hidden])')
    rows = page_of.rows()
    expected = (first, [1, 0, 0, 2]), (second, [2, 0, 1, 0]), (third, [2, 2, 0, 1])
    for row, (seen, ranks) in zip(rows, expected):
        assert row['choice'] == 'ranking'
        assert {row['completions'][i]: rank for i, rank in enumerate(row['ranks'])} == dict(zip(seen, ranks))


def test_undo_and_reload_in_the_middle(make_page, visit, pairs):
    page_of = make_page(pairs(3))
    with page_of.served() as url:
        page = visit(url, 'Ann')
        first = texts(page)
        press(page, 'a', 'Enter')
        saved(page, 1)
        press(page, 'u')
        playwright.expect(page.locator('#status')).to_contain_text('Undone', timeout=15_000)
        assert texts(page) == first and page.locator('#choice input:checked').get_attribute('value') == 'A'
        press(page, 'b', 'Enter')
        saved(page, 1)
        second = texts(page)
        press(page, 'a', '6', 'n')
        page.keyboard.type('half a thou')
        page.reload()
        page.wait_for_selector('.response')
        assert texts(page) == second and page.input_value('#note') == 'half a thou'
        press(page, 'Enter')
        saved(page, 2)
    rows = page_of.rows()
    assert [row['choice'] for row in rows] == ['A', 'undo', 'B', 'A']
    assert rows[1]['supersedes'] == rows[0]['id'] and rows[2]['item'] == rows[0]['item']
    assert rows[3]['strength'] == 6 and rows[3]['note'] == 'half a thou'


def test_a_server_that_is_away_for_a_while(make_page, visit, pairs):
    page_of = make_page(pairs(2))
    with page_of.served() as url:
        page = visit(url, 'Ann')
        away = []  # The first judgement arrives, and its answer is lost; those after it do not arrive.

        def judge(route):
            away.append(route.fetch() if not away else None)
            route.abort()

        page.route('**/api/judge', judge)
        press(page, 'a', 'Enter')
        playwright.expect(page.locator('#status')).to_contain_text('Not saved yet', timeout=15_000)
        page.unroute('**/api/judge')
        saved(page, 1)
        page.route('**/api/session', lambda route: route.abort())
        page.reload()
        playwright.expect(page.locator('#rest')).to_contain_text('The server does not answer', timeout=15_000)
        page.unroute('**/api/session')
        page.wait_for_selector('.response')
        press(page, 'b', 'Enter')
        page.wait_for_selector('#rest:not([hidden])')
    assert [row['choice'] for row in page_of.rows()] == ['A', 'B'] and away


def test_two_annotators_at_once(make_page, visit, pairs):
    page_of = make_page(pairs(4), overlap=2)
    with page_of.served() as url:
        people = {name: visit(url, name) for name in ('Ann', 'Bob')}
        for count in range(1, 5):
            for page in people.values():
                press(page, 'a', 'Enter')
            for page in people.values():
                if count < 4:
                    saved(page, count)
                else:
                    page.wait_for_selector('#rest:not([hidden])')
    rows = page_of.rows()
    assert len(rows) == 8 and len({(row['annotator'], row['item']) for row in rows}) == 8


def test_the_clock_stands_in_a_pause(make_page, visit, pairs):
    page_of = make_page(pairs(1))
    with page_of.served() as url:
        page = visit(url, 'Ann')
        press(page, 'p')
        page.wait_for_timeout(700)
        press(page, 'a')  # does nothing while paused
        press(page, 'p', 'b', 'Enter')
        page.wait_for_selector('#rest:not([hidden])')
    (row,) = page_of.rows()
    assert row['choice'] == 'B' and row['end_ms'] - row['start_ms'] - row['active_ms'] >= 650


def test_what_a_response_says_stays_text(make_page, visit):
    page_of = make_page([make_item('<b>HTML</b>?', [{'text': EVIL}, {'text': '```html\n<script>1</script>\n```'}])])
    with page_of.served() as url:
        page = visit(url, 'Ann')
        shown = '\n'.join(texts(page))
        assert '<script>window.hacked = 1</script><img src=x' in shown and '<script>1</script>' in shown
        assert page.evaluate('window.hacked') is None
        assert page.locator('main script, main img, main iframe').count() == 0
        assert page.locator('main a').count() == 0  # javascript: is no link
        assert page.locator('.response strong').inner_text() == 'bold'
        assert page.inner_text('#prompt .body') == '<b>HTML</b>?'


def test_markdown_mathematics_and_differences(make_page, visit):
    a = 'A *list*:\n\n1. one\n2. two\n   - nested\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n'
    a += '$$\\frac{a}{b} \\le \\sqrt{2}$$ \n\nEnd \\(x_1^2\\).'
    b = 'A *list*:\n\n1. one\n2. three\n   - nested\n\n$\\unknowncommand{x}$ costs $5 and $6.'
    page_of = make_page([make_item([{'role': 'user', 'content': 'مرحبا'}], [{'text': a}, {'text': b}])])
    with page_of.served() as url:
        page = visit(url, 'Ann')
        for selector in ('ol > li > ul > li', 'table td', 'math[display=block] mfrac', 'math msubsup', 'em'):
            assert page.locator(f'.response {selector}').count() >= 1, selector
        assert page.locator('.response .tex').inner_text() == '\\unknowncommand{x}'
        assert 'costs $5 and $6.' in ' '.join(texts(page))
        assert page.locator('.bubble.user > div').evaluate('node => getComputedStyle(node).direction') == 'rtl'
        press(page, 'd')
        marked = page.locator('.response mark').all_inner_texts()
        assert 'two' in marked and 'three' in marked and 'nested' not in marked
        press(page, 'd')
        assert page.locator('.response mark').count() == 0


def test_long_answers_scroll_together_or_apart(make_page, visit):
    long = {'text': 'line\n\n' * 200}, {'text': 'another line\n\n' * 400}
    page_of = make_page([make_item('Go on.', list(long))])
    with page_of.served() as url:
        page = visit(url, 'Ann')
        share = 'n => n.scrollTop / (n.scrollHeight - n.clientHeight)'
        bodies = [page.locator('.response .body').nth(i) for i in range(2)]
        bodies[0].evaluate('n => { n.scrollTop = (n.scrollHeight - n.clientHeight) / 2; }')
        page.wait_for_timeout(300)
        assert abs(bodies[1].evaluate(share) - 0.5) < 0.02
        page.wait_for_timeout(150)
        press(page, 'l')
        bodies[0].evaluate('n => { n.scrollTop = 0; }')
        page.wait_for_timeout(150)
        assert bodies[0].evaluate(share) == 0 and abs(bodies[1].evaluate(share) - 0.5) < 0.02


def test_a_phone_in_the_dark(make_page, visit):
    page_of = make_page([make_item('w' * 300, [{'text': 'long ' * 400}, {'text': '```\n' + 'x' * 400 + '\n```'}])])
    with page_of.served() as url:
        page = visit(url, 'Ann', viewport={'width': 390, 'height': 844}, color_scheme='dark')
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
        boxes = [page.locator('.response').nth(i).bounding_box() for i in range(2)]
        assert boxes[1]['y'] >= boxes[0]['y'] + boxes[0]['height']
        colour = page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert max(map(int, colour.strip('rgb()').split(','))) < 60
        page.get_by_role('radio', name='B is better').check()
        page.click('#save')
        page.wait_for_selector('#rest:not([hidden])')
    assert page_of.rows()[0]['choice'] == 'B'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing_serious(make_page, visit, scheme):
    axe = os.environ.get('AXE_CORE', '')
    if not Path(axe).is_file():
        pytest.skip('AXE_CORE does not name axe.min.js of the npm package axe-core')
    pair = make_item(
        'A question', [{'text': 'one $x^2$'}, {'text': 'two\n\n> quoted [x](https://a.b)\n\n```\ncode\n```'}]
    )
    three = make_item('Rank.', [{'text': f'## Answer {i}\n\nwith `code`'} for i in range(3)])
    for item, states in ((pair, (['a', '4', 'd', 'n'], ['Escape', 's'], ['Escape', '?'])), (three, (['1', '2'],))):
        page_of = make_page([item], criteria=['helpful'])
        with page_of.served() as url:
            page = visit(url, 'Ann', color_scheme=scheme)
            for keys in states:
                press(page, *keys)
                page.wait_for_timeout(150)  # colours fade
                assert not serious(page, axe), keys
            if item is three:
                page.goto(url + 'stats')
                page.wait_for_selector('.stats table')
                assert not serious(page, axe)


def serious(page, axe):
    """What axe finds that is serious or worse, evaluated by the browser's tools: the page allows no script."""
    page.evaluate(Path(axe).read_text())
    found = page.evaluate('axe.run(document, {resultTypes: ["violations"]})')['violations']
    return [
        (v['id'], [node['html'][:120] for node in v['nodes']]) for v in found if v['impact'] in ('serious', 'critical')
    ]
