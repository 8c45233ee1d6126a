"""A run on TPU slices in GKE: a JobSet, applied by kubectl.

    python launch/gke.py --name=sft --image=IMAGE --topology=v5p:4x4x4 -- experiments/sft.py --out=/runs/sft ...
    python launch/gke.py --name=sft --image=IMAGE --topology=v6e:16x16 --slices=2 --dry_run -- experiments/sft.py ...

One pod a host; jax finds the others by the variables that GKE sets. When a pod is evicted, all save one checkpoint and
end with exit code 143, and the JobSet starts them again, up to --restarts times: the same command resumes. --out must
lie on the volume claim that is mounted at --mount. The manifest is JSON, which kubectl reads as it reads YAML.
"""

import argparse
import json
import math
import re
import subprocess
import sys

# What GKE calls a chip's nodes, and how many chips a host has.
ACCELERATORS = {
    'v4': ('tpu-v4-podslice', 4),
    'v5e': ('tpu-v5-lite-podslice', 4),
    'v5p': ('tpu-v5p-slice', 4),
    'v6e': ('tpu-v6e-slice', 4),
}


def main(arguments=None) -> int:
    """Parses the command line, and applies or prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--name', required=True, help='of the JobSet: small letters, digits and dashes')
    parser.add_argument('--image', required=True, help='container with this repository in its working directory')
    parser.add_argument('--topology', required=True, help='CHIP:SHAPE of a slice, such as v5e:4x4')
    parser.add_argument('--slices', type=int, default=1, help='slices (1)')
    parser.add_argument('--restarts', type=int, default=100, help='how often it may be started again (100)')
    parser.add_argument('--claim', default='', help='persistent volume claim that all pods mount')
    parser.add_argument('--mount', default='/runs', help='where (/runs)')
    parser.add_argument('--spot', action='store_true', help='on spot nodes')
    parser.add_argument('--dry_run', action='store_true', help='print the manifest, and apply nothing')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='-- SCRIPT.py and its flags')
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ['--'] else given.command
    if not any(part.startswith('--out=') for part in command):
        parser.error('give -- SCRIPT.py and its flags, with --out on a volume that all pods share')
    if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', given.name):
        parser.error(f'--name={given.name}: small letters, digits and dashes, at most 40')
    chip, _, shape = given.topology.partition(':')
    if chip not in ACCELERATORS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', shape):
        parser.error(f'--topology={given.topology}: give CHIP:SHAPE with a chip of {", ".join(ACCELERATORS)}')
    text = json.dumps(manifest(given, command, chip, shape), indent=2)
    if given.dry_run:
        print(text)
        return 0
    return subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True, check=False).returncode


def manifest(given, command, chip: str, shape: str) -> dict:
    """The JobSet."""
    accelerator, per_host = ACCELERATORS[chip]
    chips = math.prod(int(side) for side in shape.split('x'))
    per_host, hosts = min(per_host, chips), max(chips // per_host, 1)
    container = {
        'name': 'run',
        'image': given.image,
        'command': ['python', *command],
        'ports': [{'containerPort': 8471}, {'containerPort': 8080}],
        'resources': {'limits': {'google.com/tpu': per_host}},
    }
    pod = {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 180,
        'nodeSelector': {
            'cloud.google.com/gke-tpu-accelerator': accelerator,
            'cloud.google.com/gke-tpu-topology': shape,
            **({'cloud.google.com/gke-spot': 'true'} if given.spot else {}),
        },
        'containers': [container],
    }
    if given.claim:
        container['volumeMounts'] = [{'name': 'runs', 'mountPath': given.mount}]
        pod['volumes'] = [{'name': 'runs', 'persistentVolumeClaim': {'claimName': given.claim}}]
    job = {'parallelism': hosts, 'completions': hosts, 'backoffLimit': 0, 'template': {'spec': pod}}
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': given.name,
            'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
        },
        'spec': {
            'failurePolicy': {'maxRestarts': given.restarts},
            'replicatedJobs': [{'name': 'slice', 'replicas': given.slices, 'template': {'spec': job}}],
        },
    }


if __name__ == '__main__':
    sys.exit(main())
