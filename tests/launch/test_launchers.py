"""What the launchers would run: scripts, manifests and commands, printed and not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / 'launch'


def call(name, *arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCH / f'{name}.py'), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_local_prints_one_command_a_process():
    done = call('local', '--processes=2', '--devices=4', '--dry_run', '--', 'a.py', '--data=x y.jsonl')
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2
    assert 'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1' in lines[1] and lines[1].endswith("python a.py '--data=x y.jsonl'")
    assert '--xla_force_host_platform_device_count=4' in lines[0]


def test_local_ends_the_others_when_one_fails_and_starts_again_after_a_stop(tmp_path):
    failing = tmp_path / 'failing.py'
    failing.write_text('import os, sys, time\nsys.exit(3) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(60)\n')
    assert call('local', '--', str(failing)).returncode == 3
    stopping = tmp_path / 'stopping.py'
    stopping.write_text(
        'import os, sys, pathlib\np = pathlib.Path(sys.argv[1]) / os.environ["JAX_PROCESS_ID"]\n'
        'code = 0 if p.exists() else 143\np.touch()\nsys.exit(code)\n'
    )
    assert call('local', '--', str(stopping), str(tmp_path)).returncode == 143
    (tmp_path / '0').unlink(), (tmp_path / '1').unlink()
    assert call('local', '--restarts=1', '--', str(stopping), str(tmp_path)).returncode == 0


def test_slurm_has_a_task_for_each_gpu_and_goes_back_into_the_queue(tmp_path):
    done = call('slurm', '--nodes=2', '--gpus=4', '--dry_run', '--', 'a.py', '--out=/s/x', '--data=x y')
    script = tmp_path / 'job.sh'
    script.write_text(done.stdout)
    assert subprocess.run(['bash', '-n', str(script)], check=False).returncode == 0
    assert {'#SBATCH --nodes=2', '#SBATCH --ntasks-per-node=4', '#SBATCH --requeue'} <= set(done.stdout.splitlines())
    assert "srun --kill-on-bad-exit=1 python a.py --out=/s/x '--data=x y'" in done.stdout and '-eq 143' in done.stdout
    assert call('slurm', '--dry_run', '--', 'a.py').returncode == 2


def test_gke_has_a_pod_for_each_host():
    flags = ('--name=a', '--image=i', '--topology=v5p:4x4x4', '--slices=2', '--claim=c', '--dry_run', '--', 'a.py')
    done = call('gke', *flags, '--out=/runs/x')
    spec = json.loads(done.stdout)['spec']
    job = spec['replicatedJobs'][0]
    assert job['replicas'] == 2 and job['template']['spec']['parallelism'] == 16
    pod = job['template']['spec']['template']['spec']
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4x4'
    assert pod['containers'][0]['resources']['limits'] == {'google.com/tpu': 4}
    assert pod['containers'][0]['command'] == ['python', 'a.py', '--out=/runs/x']


@pytest.mark.parametrize('name', ['A', 'a_b'])
def test_gke_refuses_a_name_that_kubernetes_does(name):
    done = call('gke', f'--name={name}', '--image=i', '--topology=v5e:4x4', '--dry_run', '--', 'a.py', '--out=/x')
    assert done.returncode == 2 and 'small letters' in done.stderr


def test_tpu_vm_requests_sets_up_runs_and_deletes():
    flags = ('--name=a', '--zone=z', '--type=v5p-8', '--runtime=r', '--spot', '--dry_run', '--', 'a.py', '--out=/x')
    lines = call('tpu_vm', *flags).stdout.splitlines()
    assert 'queued-resources create a --node-id=a' in lines[0] and '--spot' in lines[0]
    assert '--worker=all' in lines[3] and 'python a.py --out=/x' in lines[3] and 'delete a' in lines[4]
