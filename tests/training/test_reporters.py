"""Charts: what TensorBoard, Weights & Biases and Trackio are told has one set of names and steps.

Where a library is not installed, a small one in its place notes what it is told.
"""

import importlib
import json
import re
import sys
from types import ModuleType

import pytest
from tensorboardX.proto.event_pb2 import Event

from rlax_ft.errors import InputError
from rlax_ft.training.metrics import MetricsWriter
from rlax_ft.training.reporters import make_reporters

SERVICES = ('wandb', 'trackio')
STEPS = {1: {'loss': 2.0, 'rewards/margins': 0.5}, 2: {'loss': 1.0, 'rewards/margins': float('nan')}, 3: {'loss': 0.5}}
# What each must be told: a number that is not finite has no place on a chart.
CHARTS = {(1, 'loss'): 2.0, (1, 'rewards/margins'): 0.5, (2, 'loss'): 1.0, (3, 'loss'): 0.5}


def stand_in(name):
    """A module with the part of the interface that is used, strict in what it takes; `module.runs` notes it."""
    module = ModuleType(name)
    module.runs = []

    def init(*, project, name, resume, id=None, dir=None):
        module.runs.append({'name': id or name, 'rows': [], 'done': False})

    def log(values, *, step):
        assert not module.runs[-1]['done']
        module.runs[-1]['rows'].append((step, dict(values)))

    def finish():
        module.runs[-1]['done'] = True

    module.init, module.log, module.finish = init, log, finish
    return module


def write(folder, report_to, steps=STEPS, start=0):
    folder.mkdir(exist_ok=True)
    with MetricsWriter(folder, start=start, total=3, title='x', report_to=report_to) as writer:
        for step, metrics in steps.items():
            writer.write(step, metrics)


@pytest.mark.parametrize('service', SERVICES)
def test_a_chart_has_the_names_and_steps_of_metrics(tmp_path, monkeypatch, service):
    library = stand_in(service)
    monkeypatch.setitem(sys.modules, service, library)
    write(tmp_path / 'run', f'tensorboard,{service}')
    (run,) = library.runs
    assert run['done'] and {(step, name): x for step, row in run['rows'] for name, x in row.items()} == CHARTS
    assert board(tmp_path / 'run') == CHARTS
    lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert {line['step'] for line in lines} == {1, 2, 3}


def board(folder):
    """(step, name) -> value of TensorBoard's files; a record is its length, a checksum, the event, a checksum."""
    found = {}
    for path in (folder / 'tensorboard').iterdir():
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], 'little')
            event = Event.FromString(data[12 : 12 + size])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    return found


@pytest.mark.parametrize('service', SERVICES)
def test_a_run_goes_on_in_its_own_chart_and_never_in_one_of_its_name(tmp_path, monkeypatch, service):
    library = stand_in(service)
    monkeypatch.setitem(sys.modules, service, library)
    (tmp_path / 'other').mkdir()
    write(tmp_path / 'dpo', service, {1: {'loss': 2.0}})
    write(tmp_path / 'dpo', service, {2: {'loss': 1.0}}, start=1)
    write(tmp_path / 'other/dpo', service)
    first, again, other = (run['name'] for run in library.runs)
    assert first == again != other and first.startswith('dpo-') and other.startswith('dpo-')


def test_a_service_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match=r"--report_to=wandb: needs wandb \(.*\); pip install 'rlax_ft\[wandb\]'"):
        make_reporters('wandb', tmp_path, 0)
    with pytest.raises(InputError, match=re.escape("--report_to=wandb,mlflow: 'mlflow' is none of tensorboard, wandb")):
        make_reporters('wandb,mlflow', tmp_path, 0)


def test_weights_and_biases_itself(tmp_path, monkeypatch):
    """The installed library, offline; its file holds names and values."""
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    write(tmp_path / 'run', 'wandb')
    (path,) = (tmp_path / 'run/wandb').glob('offline-run-*/*.wandb')
    data = path.read_bytes()
    assert all(name.encode() in data for _, name in CHARTS)


def test_trackio_itself(tmp_path, monkeypatch):
    """The installed library, in a folder of its own; its table holds the same rows."""
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    if 'trackio' in sys.modules:
        pytest.skip('imported already, with another folder')
    pytest.importorskip('trackio')
    write(tmp_path / 'run', 'trackio')
    storage = importlib.import_module('trackio.sqlite_storage').SQLiteStorage
    (name,) = storage.get_runs('rlax_ft')
    rows = {(row['step'], key): row[key] for row in storage.get_logs('rlax_ft', name) for key in row}
    assert {key: rows.get(key) for key in CHARTS} == CHARTS
