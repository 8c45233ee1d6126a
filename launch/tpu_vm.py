"""A run on a TPU VM slice through queued resources: requested, set up, started on all workers, resumed when preempted.

    python launch/tpu_vm.py --name=sft --zone=us-east5-a --type=v5p-128 --runtime=v2-alpha-tpuv5 --spot \\
        --source=https://github.com/OWNER/rlax_ft -- experiments/sft.py --mesh=fsdp=64 --out=/mnt/runs/sft
    python launch/tpu_vm.py --name=sft --zone=ZONE --type=v5litepod-16 --runtime=v2-alpha-tpuv5-lite --dry_run -- ...

Each worker runs the same command; jax finds the others by the slice's metadata, and process 0 alone prints. A run that
ends with exit code 143 (stopped with a checkpoint), or whose slice was taken away, is started again and resumes. --out
must be seen by all workers, such as a bucket mounted by --setup.
"""

import argparse
import shlex
import subprocess
import sys
import time

STOPPED = 143


def main(arguments=None) -> int:
    """Parses the command line, and runs or prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--name', required=True, help='of the slice and of its request')
    parser.add_argument('--zone', required=True, help='such as us-east5-a')
    parser.add_argument('--type', required=True, help='accelerator type, such as v5p-128 or v5litepod-16')
    parser.add_argument('--runtime', required=True, help='such as v2-alpha-tpuv5')
    parser.add_argument('--project', default='', help="when it is not gcloud's own")
    parser.add_argument('--source', default='', help='git repository to clone on each worker; what is there when empty')
    parser.add_argument('--setup', default="pip install -e '.[tpu]'", help='shell line in it, before the first start')
    parser.add_argument('--spot', action='store_true', help='a slice that may be taken away')
    parser.add_argument('--restarts', type=int, default=100, help='how often it may be started again (100)')
    parser.add_argument('--dry_run', action='store_true', help='print the commands, and run nothing')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='-- SCRIPT.py and its flags')
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ['--'] else given.command
    if not any(part.startswith('--out=') for part in command):
        parser.error('give -- SCRIPT.py and its flags, with --out where all workers see it')
    create, state, delete, setup, run = commands(given, command)
    if given.dry_run:
        for line in (create, state, setup, run, delete):
            print(shlex.join(line))
        return 0
    code = 1
    for _ in range(given.restarts + 1):
        if not _ready(state):
            subprocess.run(delete, check=False)
            subprocess.run(create, check=True)
            while not _ready(state):
                time.sleep(30)
            subprocess.run(setup, check=True)
        code = subprocess.run(run, check=False).returncode
        if code != STOPPED and _ready(state):
            break
    return code


def commands(given, command) -> list[list[str]]:
    """To request the slice, to ask for its state, to delete it, to set up all workers, and to run on them."""
    place = [f'--zone={given.zone}', *([f'--project={given.project}'] if given.project else [])]
    queue = ['gcloud', 'compute', 'tpus', 'queued-resources']
    shell = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', given.name, *place, '--worker=all']
    create = [*queue, 'create', given.name, f'--node-id={given.name}', *place, f'--accelerator-type={given.type}']
    create += [f'--runtime-version={given.runtime}', *(['--spot'] if given.spot else [])]
    state = [*queue, 'describe', given.name, *place, '--format=value(state.state)']
    delete = [*queue, 'delete', given.name, *place, '--force', '--quiet']
    clone = f'git clone {shlex.quote(given.source)} rlax_ft; ' if given.source else ''
    setup = [*shell, f'--command={clone}cd rlax_ft && {given.setup}']
    return [create, state, delete, setup, [*shell, f'--command=cd rlax_ft && python {shlex.join(command)}']]


def _ready(state):
    return subprocess.run(state, capture_output=True, text=True, check=False).stdout.strip() == 'ACTIVE'


if __name__ == '__main__':
    sys.exit(main())
