"""The labelling page under load: simulated annotators over HTTP while the server is killed and started again.

    python experiments/benchmarks/feedback_load.py                       # 50 annotators, 10,000 judgements, 5 kills
    python experiments/benchmarks/feedback_load.py --annotators=10 --judgements=1000 --kills=1 --items=10000

Says the 50th and 99th percentile of a judgement's time from key to saved (those that met a kill apart), how many were
lost or doubled, how long the page takes to open with so many items, and the server's largest memory. The annotators
are threads of this process and share its cores with the server.
"""

import dataclasses
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from rlax_ft.data.feedback import read_store
from rlax_ft.data.records import write_records
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.run import write_json
from rlax_ft.harness.settings import Checked, flag

SCRIPT = Path(__file__).resolve().parents[1] / 'collect_feedback.py'


@dataclasses.dataclass(frozen=True)
class LoadSettings(Checked):
    """Flags of feedback_load.py."""

    annotators: int = flag(50, 'How many judge at once.', at_least=1)
    judgements: int = flag(10_000, 'How many judgements they make together.', at_least=1)
    items: int = flag(100_000, 'Items in the store.', at_least=1)
    kills: int = flag(5, 'How often the server is killed (SIGKILL) and started again meanwhile.', at_least=0)
    think: float = flag(1.0, 'Mean seconds between an item and its judgement; people take ten and more.', at_least=0)
    port: int = flag(8650, 'Port of the server.', at_least=1, at_most=65535)
    out: str = flag('', 'JSON file for the numbers.')


class Server:
    """The script as a process, which can be killed."""

    def __init__(self, folder: Path, port: int):
        """Starts it on the samples in the folder."""
        self.folder, self.port, self.memory, self.starts = folder, port, 0, []
        self.start()

    def start(self):
        """Starts it, again or for the first time, and waits until it listens."""
        began = time.perf_counter()
        samples = [f'--samples={self.folder / "samples.jsonl"}'] if not (self.folder / 'f.sqlite').exists() else []
        command = [sys.executable, str(SCRIPT), f'--out={self.folder / "f.sqlite"}', f'--port={self.port}', *samples]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if line.startswith('open '):
                break
        self.starts.append(time.perf_counter() - began)

    def kill(self):
        """SIGKILL, after a look at the largest memory that it has had, in MB."""
        status = Path(f'/proc/{self.process.pid}/status').read_text()
        self.memory = max(self.memory, int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Annotator(threading.Thread):
    """Asks and judges until its share is done; a request is repeated until it is answered."""

    def __init__(self, number: int, count: int, settings: LoadSettings):
        """Takes its number, how many judgements it makes, and the port."""
        super().__init__(daemon=True)
        self.number, self.count, self.settings = number, count, settings
        self.told, self.times, self.disturbed, self.connection = [], [], [], None
        self.random = random.Random(number)

    def run(self):
        """Judges."""
        self.enter()
        asked, _ = self.post('next', {})
        for i in range(self.count):
            if 'ticket' not in asked:
                raise SystemExit(f'annotator {self.number}: nothing is left to judge; give more --items')
            time.sleep(self.random.expovariate(1 / self.settings.think) if self.settings.think else 0)
            name = f'{self.number:08x}{i:024x}'
            sent = {'id': name, 'ticket': asked['ticket'], 'choice': self.random.choice('AB')}
            began = time.perf_counter()
            answer, tries = self.post('judge', sent | {'start_ms': 1, 'end_ms': 2, 'active_ms': 1})
            (self.times if tries == 1 else self.disturbed).append(time.perf_counter() - began)
            assert answer['saved'] == name, answer
            self.told.append(name)
            asked = answer['next']

    def enter(self):
        """Says its name, and keeps what every later request must carry."""
        self.headers = {}
        session, _ = self.post('login', {'name': f'annotator {self.number}'})
        self.headers = {'cookie': self.cookie, 'x-csrf-token': session['csrf']}

    def post(self, name, value):
        """(answer, how many tries it took)."""
        origin = f'http://127.0.0.1:{self.settings.port}'
        headers = {'content-type': 'application/json', 'origin': origin, **self.headers}
        for tries in range(1, 10_000):
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection('127.0.0.1', self.settings.port, timeout=30)
                self.connection.request('POST', f'/api/{name}', json.dumps(value), headers)
                response = self.connection.getresponse()
                body = json.loads(response.read())
                if response.status == 200:
                    self.cookie = (response.getheader('set-cookie') or '').split(';')[0]
                    return body, tries
                if response.status != 503:
                    raise SystemExit(f'{name}: {response.status} {body}')
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                self.connection = None
            time.sleep(0.05)
        raise SystemExit('the server does not come back')


def measure(settings: LoadSettings) -> dict:
    """Runs the load; returns and prints its numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = 'This is a sentence of the response. ' * 10
        records = (
            {'prompt': f'Question {i}?', 'completions': [f'{i} {text}', f'{text} {i}']} for i in range(settings.items)
        )
        write_records(folder / 'samples.jsonl', list(records))
        server = Server(folder, settings.port)
        try:
            opened, people, seconds = under_load(settings, server)
        finally:
            server.kill()
        kept = [row['id'] for row, _ in read_store(folder / 'f.sqlite')]
    told = [name for person in people for name in person.told]
    times = np.asarray([t for person in people for t in person.times]) * 1000
    numbers = {
        'judgements': len(told),
        'lost': len(set(told) - set(kept)),
        'doubled': len(kept) - len(set(kept)),
        'p50_ms': float(np.percentile(times, 50)),
        'p99_ms': float(np.percentile(times, 99)),
        'met_a_kill': sum(len(person.disturbed) for person in people),
        'a_second': len(told) / seconds,
        'page_opens_s': opened,
        'start_s': server.starts[0],
        'start_again_s': float(np.mean(server.starts[1:])) if server.starts[1:] else None,
        'memory_mb': server.memory,
        'cores': os.cpu_count(),
    }
    print(json.dumps(numbers, indent=2))
    if settings.out:
        write_json(Path(settings.out), numbers)
    return numbers


def under_load(settings: LoadSettings, server: Server) -> tuple[float, list[Annotator], float]:
    """(seconds that the page took to open, the annotators at their end, seconds that they took)."""
    opened = page_seconds(settings)
    share = -(-settings.judgements // settings.annotators)
    people = [Annotator(i, share, settings) for i in range(settings.annotators)]
    began = time.perf_counter()
    for person in people:
        person.start()
    for number in range(settings.kills):
        goal = (number + 1) * share * settings.annotators / (settings.kills + 1)
        while sum(len(person.told) for person in people) < goal and any(p.is_alive() for p in people):
            time.sleep(0.02)
        server.kill()
        server.start()
    for person in people:
        person.join()
    return opened, people, time.perf_counter() - began


def page_seconds(settings: LoadSettings) -> float:
    """Seconds from the first request to the first item: the page, its files, a login, an item."""
    began, visitor = time.perf_counter(), Annotator(10_000, 0, settings)
    connection = http.client.HTTPConnection('127.0.0.1', settings.port, timeout=30)
    for path in ('/', '/static/app.js', '/static/style.css', '/api/session'):
        connection.request('GET', path)
        connection.getresponse().read()
    visitor.enter()
    visitor.post('next', {})
    return time.perf_counter() - began


if __name__ == '__main__':
    run_script(LoadSettings, measure)
