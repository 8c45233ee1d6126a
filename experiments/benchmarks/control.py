"""Measures training speed on CartPole against PPO as others write it, ours and a peer in turn.

    python experiments/benchmarks/control.py --rounds=7 --record
    python experiments/benchmarks/control.py --total_steps=4096 --rounds=1     # small, to see that it works

Peers: plain_ppo.py beside this file, a restatement of purejaxrl's program with its settings (4 environments, 128 steps,
4 epochs of 4 minibatches), since purejaxrl itself does not run with gymnax 1.0; and torch_ppo.py, a loop in the manner
of CleanRL's `ppo.py` (Gymnasium's synchronous vector of environments and PyTorch, the same settings). Compilation is
not counted. Leaves out scores, which control_scores.py gives.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from alternate import race, serve
from shapes import ROUNDS, report

HERE = Path(__file__).parent
_STEPS = flags.DEFINE_integer('total_steps', 500_000, 'Environment steps of a run.', lower_bound=512)
_SEEDS = flags.DEFINE_integer('num_seeds', 8, 'Seeds of the vmapped comparison.', lower_bound=2)
_PART = flags.DEFINE_string('part', '', 'Be the worker `PROGRAM:SEEDS`.')
# A host loop is slow; its rate does not depend on how long it runs.
_HOST_STEPS = 20_480


def ours(steps: int, seeds: int) -> Callable:
    """All updates of ppo_control.py's own program, for so many seeds."""
    import jax
    import jax.numpy as jnp
    import ppo_control
    from control_programs import Program, place
    from control_setup import ControlSettings, agent_for, hyper_of, make_env, optimizer_of, runs_of

    from rlax_ft.envs.ppo import init_control

    settings = ControlSettings(total_steps=steps, num_seeds=seeds)
    env, runs = make_env(settings), runs_of(settings)
    agent, hyper = agent_for(settings, env), hyper_of(runs)
    first = lambda key, rate: init_control(agent, optimizer_of(settings, rate), key, env=env, num_envs=4)  # noqa: E731
    keys = jnp.stack([jax.random.key(one['seed']) for one in runs])
    held = [place(settings, jax.jit(jax.vmap(first))(keys, hyper.learning_rate))]
    program = Program(settings, ppo_control.make_iterations(settings, env, agent))

    def work():
        # Goes on from where it was: a step costs the same at the end of a run.
        held[0], _ = jax.block_until_ready(program(hyper, held[0], jnp.int32(settings.updates)))

    return work


def plain(steps: int, seeds: int) -> Callable:
    """A run of the restated purejaxrl program, for so many seeds."""
    import jax
    from plain_ppo import make_train

    train, key = make_train(total=steps), jax.random.key(0)
    train, key = (jax.vmap(train), jax.random.split(key, seeds)) if seeds > 1 else (train, key)
    compiled = jax.jit(train).lower(key).compile()

    def work():
        jax.block_until_ready(compiled(key))

    return work


def host_loop(steps: int, seeds: int) -> Callable:
    """A Gymnasium and PyTorch loop in the manner of CleanRL's `ppo.py`."""
    del seeds
    from torch_ppo import train

    return lambda: train(steps)


def serve_part(part: str) -> None:
    """Becomes the worker `PROGRAM:SEEDS`."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
    # Peers, too, run without the scheduler that can deadlock: a program that hangs has no speed.
    import cpu_flags  # noqa: F401

    name, _, seeds = part.partition(':')
    serve({'ours': ours, 'plain': plain, 'host_loop': host_loop}[name](_STEPS.value, int(seeds)))


def rival(name: str, part: str, peer: str, *, peer_steps: int) -> dict:
    """The record of one of our programs against a peer, in environment steps a second."""
    command = lambda part, steps: [sys.executable, __file__, f'--part={part}', f'--total_steps={steps}']  # noqa: E731
    times = race([command(part, _STEPS.value), command(peer, peer_steps)], rounds=ROUNDS.value)
    seeds = int(part.partition(':')[2])
    whole = [steps // 512 * 512 * seeds for steps in (_STEPS.value, peer_steps)]
    mine, other = (steps / t['seconds'] for steps, t in zip(whole, times))
    return {'name': name, 'ours': mine, 'peer': other, 'unit': 'steps/s', 'ratio': mine / other}


def main(_):
    """Measures and prints; with --part, is a worker."""
    if _PART.value:
        serve_part(_PART.value)
        return
    steps, many = _STEPS.value, _SEEDS.value
    records = [
        rival('1 seed, against purejaxrl restated', 'ours:1', 'plain:1', peer_steps=steps),
        rival(f'{many} seeds, against purejaxrl restated', f'ours:{many}', f'plain:{many}', peer_steps=steps),
        rival('1 seed, against a CleanRL-like loop', 'ours:1', 'host_loop:1', peer_steps=min(steps, _HOST_STEPS)),
    ]
    report('PPO for environments: speed', records)


if __name__ == '__main__':
    app.run(main)
