"""Measures training speed on CartPole against PPO as others write it, in one run, peers and ours in turn.

    python experiments/benchmarks/control.py --json=control.json
    python experiments/benchmarks/control.py --total_steps=4096 --rounds=1     # small, to see that it works

Peers: plain_ppo.py beside this file, a restatement of purejaxrl's program with its settings (4 environments, 128 steps,
4 epochs of 4 minibatches), since purejaxrl itself does not run with gymnax 1.0; and a loop in the manner of CleanRL's
`ppo.py` (Gymnasium's synchronous vector of environments and PyTorch, the same settings), if torch is installed. Every
program is compiled first and timed afterwards, each in a process of its own, and the best of the rounds counts. Leaves
out scores, which the recipes give.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

HERE = Path(__file__).parent
_STEPS = flags.DEFINE_integer('total_steps', 500_000, 'Environment steps of a run.', lower_bound=512)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Times that everything is measured; the best counts.', lower_bound=1)
_SEEDS = flags.DEFINE_integer('num_seeds', 8, 'Seeds of the vmapped comparison.', lower_bound=1)
_JSON = flags.DEFINE_string('json', '', 'File for the records.')
_PART = flags.DEFINE_string('part', '', 'Measure one program and print its steps per second: for its own process.')


def ours(steps: int, seeds: int) -> float:
    """Steps a second of all seeds of ppo_control.py's own program."""
    import jax
    import jax.numpy as jnp
    import ppo_control
    from control_programs import Program, place
    from control_setup import ControlSettings, agent_for, hyper_of, make_env, optimizer_of, runs_of

    from rlax_ft.training.control import init_control

    settings = ControlSettings(total_steps=steps, num_seeds=seeds)
    env, runs = make_env(settings), runs_of(settings)
    agent, hyper = agent_for(settings, env), hyper_of(runs)
    first = lambda key, rate: init_control(agent, optimizer_of(settings, rate), key, env=env, num_envs=4)  # noqa: E731
    keys = jnp.stack([jax.random.key(one['seed']) for one in runs])
    state = place(settings, jax.jit(jax.vmap(first))(keys, hyper.learning_rate))
    program = Program(settings, ppo_control.make_iterations(settings, env, agent))
    state, _ = jax.block_until_ready(program(hyper, state, jnp.int32(1)))
    started = time.perf_counter()
    jax.block_until_ready(program(hyper, state, jnp.int32(settings.updates)))
    return seeds * settings.updates * settings.steps_per_update / (time.perf_counter() - started)


def plain(steps: int, seeds: int) -> float:
    """Steps a second of all seeds of the restated purejaxrl program."""
    import jax
    from plain_ppo import make_train

    steps -= steps % 512
    train = make_train(total=steps)
    key = jax.random.key(0)
    train, key = (jax.vmap(train), jax.random.split(key, seeds)) if seeds > 1 else (train, key)
    compiled = jax.jit(train).lower(key).compile()
    jax.block_until_ready(compiled(key))
    started = time.perf_counter()
    jax.block_until_ready(compiled(key))
    return seeds * steps / (time.perf_counter() - started)


def host_loop(steps: int, seeds: int) -> float:
    """Steps a second of a Gymnasium and PyTorch loop in the manner of CleanRL's `ppo.py`."""
    del seeds
    from torch_ppo import train

    return train(min(steps, 20_480))


def measure(part: str) -> float:
    """One program in a process of its own."""
    command = [sys.executable, __file__, f'--part={part}', f'--total_steps={_STEPS.value}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f'error: {part}: {(done.stderr.strip().splitlines() or ["no output"])[-1]}')
    return float(done.stdout.split()[-1])


def main(_):
    """Measures and prints; with --part, one program."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    if _PART.value:
        name, _, seeds = _PART.value.partition(':')
        # Peers, too, run without the scheduler that can deadlock: a program that hangs has no speed.
        import cpu_flags  # noqa: F401

        print({'ours': ours, 'plain': plain, 'host_loop': host_loop}[name](_STEPS.value, int(seeds)))
        return
    many, best = _SEEDS.value, {}
    pairs = [
        ('steps per second, 1 seed, against purejaxrl restated', 'ours:1', 'plain:1'),
        (f'steps per second, {many} seeds together, against purejaxrl restated', f'ours:{many}', f'plain:{many}'),
        ('steps per second, 1 seed, against a CleanRL-like loop', 'ours:1', 'host_loop:1'),
    ]
    parts = sorted({part for _, *both in pairs for part in both})
    for _ in range(_ROUNDS.value):
        for part in parts:
            best[part] = max(best.get(part, 0.0), measure(part))
    records = [
        {'name': name, 'ours': best[a], 'peer': best[b], 'unit': 'steps/s', 'ratio': best[a] / best[b]}
        for name, a, b in pairs
    ]
    for record in records:
        print('{name}: {ours:,.0f} / {peer:,.0f} = {ratio:.2f}'.format(**record))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps({'cores': os.cpu_count(), 'records': records}, indent=2) + '\n')


if __name__ == '__main__':
    app.run(main)
