"""A run on GPU nodes under SLURM: writes a batch script and submits it.

    python launch/slurm.py --nodes=4 --gpus=8 --time=24:00:00 -- experiments/sft.py --mesh=fsdp=32 --out=/shared/sft
    python launch/slurm.py --nodes=2 --gpus=4 --dry_run -- experiments/dpo.py --data=pairs.jsonl --out=/shared/runs/dpo

One task a GPU, as jax pairs them under srun. Two minutes before its time is over the job gets SIGTERM: the run saves
one checkpoint, ends with exit code 143, and the job goes back into the queue, where the same command resumes.
"""

import argparse
import shlex
import subprocess
import sys


def main(arguments=None) -> int:
    """Parses the command line, and submits or prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--nodes', type=int, default=1, help='nodes (1)')
    parser.add_argument('--gpus', type=int, default=8, help='GPUs of each node (8)')
    parser.add_argument('--cpus', type=int, default=8, help='CPU cores for each GPU (8)')
    parser.add_argument('--time', default='24:00:00', help='longest time of one go (24:00:00)')
    parser.add_argument('--partition', default='', help='partition')
    parser.add_argument('--account', default='', help='account')
    parser.add_argument('--name', default='rlax_ft', help='name of the job')
    parser.add_argument('--setup', default='', help='shell line before the run, such as "source venv/bin/activate"')
    parser.add_argument('--grace', type=int, default=120, help='seconds before the end at which the run saves (120)')
    parser.add_argument('--dry_run', action='store_true', help='print the script, and submit nothing')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='-- SCRIPT.py and its flags')
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ['--'] else given.command
    if not any(part.startswith('--out=') for part in command):
        parser.error('give -- SCRIPT.py and its flags, with --out on a file system that all nodes share')
    script = batch_script(given, command)
    if given.dry_run:
        print(script, end='')
        return 0
    return subprocess.run(['sbatch'], input=script, text=True, check=False).returncode


def batch_script(given, command) -> str:
    """What sbatch reads."""
    options = {
        'job-name': given.name,
        'nodes': given.nodes,
        'ntasks-per-node': given.gpus,
        'gpus-per-node': given.gpus,
        'cpus-per-task': given.cpus,
        'time': given.time,
        'partition': given.partition,
        'account': given.account,
        'signal': f'TERM@{given.grace}',
        'output': f'{given.name}-%j.log',
        'open-mode': 'append',
    }
    lines = ['#!/bin/bash', *(f'#SBATCH --{name}={value}' for name, value in options.items() if value != '')]
    lines += ['#SBATCH --requeue', '', *filter(None, [given.setup])]
    lines += [
        f'srun --kill-on-bad-exit=1 python {shlex.join(command)}',
        'code=$?',
        '# 143: stopped with a checkpoint.',
        'if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(main())
