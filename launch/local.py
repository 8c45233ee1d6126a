"""A run of several processes on this machine, each with virtual CPU devices: the code path of a pod, without one.

    python launch/local.py --processes=2 --devices=4 -- experiments/sft.py --task=reviews --mesh=fsdp=8 --out=runs/sft
    python launch/local.py --processes=2 --dry_run -- experiments/dpo.py --data=pairs.jsonl

What process 0 prints is printed, what the others print only with --all. A signal to this launcher reaches every
process; one to a single process stops all after the same step, with one checkpoint and exit code 143, and --restarts=N
starts such a run again. When a process fails, the others are ended.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

# What a run ends with that was asked to stop and has saved a checkpoint: 128 + SIGTERM.
STOPPED = 143


def main(arguments=None) -> int:
    """Parses the command line and runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2, help='how many (2)')
    parser.add_argument('--devices', type=int, default=1, help='virtual CPU devices of each (1)')
    parser.add_argument('--restarts', type=int, default=0, help=f'how often a run that ends with {STOPPED} goes on (0)')
    parser.add_argument('--all', action='store_true', help='print what every process prints, with its number in front')
    parser.add_argument('--dry_run', action='store_true', help='print what would run, and run nothing')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='-- SCRIPT.py and its flags')
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ['--'] else given.command
    if not command:
        parser.error('give -- SCRIPT.py and its flags')
    if given.processes < 1 or given.devices < 1:
        parser.error('--processes and --devices are at least 1')
    if given.dry_run:
        for index in range(given.processes):
            settings = variables(index, given.processes, given.devices, 'localhost:PORT')
            print(' '.join([*(f'{k}={shlex.quote(v)}' for k, v in settings.items()), 'python', shlex.join(command)]))
        return 0
    for attempt in range(given.restarts + 1):
        code, told = run(command, given)
        if code != STOPPED or told:
            break
        if attempt < given.restarts:
            print(f'launch: stopped with a checkpoint; start {attempt + 2} of {given.restarts + 1}', file=sys.stderr)
    return code


def variables(index: int, count: int, devices: int, coordinator: str) -> dict[str, str]:
    """The environment of process `index`, beside what is set already."""
    flags = os.environ.get('XLA_FLAGS', '').split()
    kept = [flag for flag in flags if 'xla_force_host_platform_device_count' not in flag]
    return {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': ' '.join([*kept, f'--xla_force_host_platform_device_count={devices}']),
        'JAX_COORDINATOR_ADDRESS': coordinator,
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
    }


def run(command, given) -> tuple[int, bool]:
    """(exit code of the first process that failed, or 0; whether this launcher was told to stop)."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        coordinator = f'localhost:{free.getsockname()[1]}'
    processes, told = [], []
    for index in range(given.processes):
        environment = {**os.environ, **variables(index, given.processes, given.devices, coordinator)}
        shown = index == 0 or given.all
        out = subprocess.PIPE if given.all else None if shown else subprocess.DEVNULL
        # Errors are everybody's: a process that fails alone says why.
        error = subprocess.STDOUT if given.all else None
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=out, stderr=error, text=True)
        processes.append(process)
        if given.all:
            threading.Thread(target=_echo, args=(index, process.stdout), daemon=True).start()

    def forward(number, _):
        told.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(processes), bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes):
    """Waits for all; when one has failed, the rest have a while to end by themselves."""
    failed, since = 0, None
    while None in (codes := [process.poll() for process in processes]):
        if since is None and any(codes):
            failed, since = next(filter(None, codes)), time.monotonic()
        if since is not None and time.monotonic() - since > (30 if failed == STOPPED else 5):
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    failed = failed or next((process.returncode for process in processes if process.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _echo(index, stream):
    for line in stream:
        print(f'[{index}] {line}', end='', flush=True)


if __name__ == '__main__':
    sys.exit(main())
