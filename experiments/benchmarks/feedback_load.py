"""The labelling page under load: simulated annotators over HTTP while the server is killed and started again.

    python experiments/benchmarks/feedback_load.py                       # 50 annotators, 10,000 judgements, 5 kills
    python experiments/benchmarks/feedback_load.py --annotators=10 --judgements=1000 --kills=1 --items=10000

Says the 50th and 99th percentile of a judgement's time from key to saved (those that met a kill apart), how many were
lost, doubled or changed, how long the page takes to open with so many items, the server's largest memory, and what a
judgement costs in CPU time, without starts. The annotators are threads of this process, on the server's cores.
"""

import dataclasses
import http.client
import json
import os
import random
import re
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
from rlax_ft.harness.results import record
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
    record: bool = flag(False, 'Write the section of RESULTS.md.')


class Server:
    """The script as a process, which can be killed."""

    def __init__(self, folder: Path, port: int):
        """Starts it on the samples in the folder."""
        self.folder, self.port, self.memory, self.cpu, self.starts = folder, port, 0, 0.0, []
        self.start()

    def start(self):
        """Starts it, again or for the first time, and waits until it listens."""
        began = time.perf_counter()
        samples = [f'--samples={self.folder / "samples.jsonl"}'] if not (self.folder / 'f.sqlite').exists() else []
        command = [sys.executable, str(SCRIPT), f'--out={self.folder / "f.sqlite"}', f'--port={self.port}', *samples]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        next(line for line in self.process.stdout if line.startswith('open '))
        self.starts.append(time.perf_counter() - began)
        self.cpu -= self.seconds()

    def seconds(self):
        """CPU seconds that it has used since it was started."""
        after_name = Path(f'/proc/{self.process.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf('SC_CLK_TCK')

    def kill(self):
        """SIGKILL, after a look at the largest memory that it has had, in MB, and its CPU time."""
        peak = re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{self.process.pid}/status').read_text())
        self.memory = max(self.memory, int(peak[1]) / 1024)
        self.cpu += self.seconds()
        self.process.kill()
        self.process.wait()


class Annotator(threading.Thread):
    """Asks and judges until its share is done; a request is repeated until it is answered."""

    def __init__(self, number: int, count: int, settings: LoadSettings):
        """Takes its number, how many judgements it makes, and the port."""
        super().__init__(daemon=True)
        self.number, self.count, self.settings, self.random = number, count, settings, random.Random(number)
        self.told, self.times, self.disturbed, self.connection = {}, [], [], None

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
            self.told[answer['saved']], asked = sent['choice'], answer['next']

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
        texts = ((f'Question {i}?', [f'{i} {text}', f'{text} {i}']) for i in range(settings.items))
        write_records(folder / 'samples.jsonl', [{'prompt': p, 'completions': c} for p, c in texts])
        server = Server(folder, settings.port)
        try:
            opened, cpu = page_seconds(settings), time.process_time()
            people = under_load(settings, server)
            cpu = time.process_time() - cpu
        finally:
            server.kill()
        kept = [(row['id'], row['choice']) for row, _ in read_store(folder / 'f.sqlite')]
    told = {name: choice for person in people for name, choice in person.told.items()}
    times = np.asarray([t for person in people for t in person.times]) * 1000
    numbers = {
        'judgements': len(told),
        'lost': len(told.keys() - dict(kept).keys()),
        'doubled': len(kept) - len(dict(kept)),
        'changed': sum(told.get(name, choice) != choice for name, choice in kept),
        **{f'p{share}_ms': float(np.percentile(times, share)) for share in (50, 99)},
        'met_a_kill': sum(len(person.disturbed) for person in people),
        'server_cpu_ms': server.cpu / len(told) * 1000,
        'annotator_cpu_ms': cpu / len(told) * 1000,
        'page_opens_s': opened,
        'start_s': server.starts[0],
        'start_again_s': float(np.mean(server.starts[1:] or [np.nan])),
        'memory_mb': server.memory,
    }
    print(json.dumps(numbers, indent=2))
    if settings.record:
        rows = '\n'.join(f'| `{name}` | {value:.4g} |' for name, value in numbers.items())
        record('The labelling page under load', f'| | |\n|---|---|\n{rows}')
    return numbers


def under_load(settings: LoadSettings, server: Server) -> list[Annotator]:
    """The annotators at their end; the server is killed and started again while they work."""
    share = -(-settings.judgements // settings.annotators)
    people = [Annotator(i, share, settings) for i in range(settings.annotators)]
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
    return people


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
