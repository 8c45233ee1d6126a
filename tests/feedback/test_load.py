"""The script itself on a port, under a small load: killed and started again, it loses and doubles nothing."""

import socket
from pathlib import Path

from rlax_ft.harness.loading import load_script

BENCHMARKS = Path(__file__).parents[2] / 'experiments/benchmarks'


def test_nothing_is_lost_or_doubled_when_the_server_is_killed():
    load = load_script(BENCHMARKS / 'feedback_load.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    given = dict(annotators=4, judgements=40, items=60, kills=1, think=0.01, port=port)
    numbers = load.measure(load.LoadSettings(**given))
    assert numbers['judgements'] == 40 and numbers['lost'] == numbers['doubled'] == numbers['changed'] == 0
    assert numbers['start_again_s'] > 0 and numbers['server_cpu_ms'] >= 0 and 0 < numbers['memory_mb'] < 500
