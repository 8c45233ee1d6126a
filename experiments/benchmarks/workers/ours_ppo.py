"""PPO of ppo_env.py, as a worker of control.py: `ours_ppo.py STEPS SEEDS`, all updates of the script's own program."""

import sys
from pathlib import Path

from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.

# isort: split
import jax
import jax.numpy as jnp

from rlax_ft.envs.ppo import init_control
from rlax_ft.envs.programs import Program, place
from rlax_ft.envs.setup import agent_for, hyper_of, make_env, optimizer_of, runs_of
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.race import serve


def main(steps: int, seeds: int) -> None:
    """Serves whole runs, for so many seeds."""
    script = load_script(Path(__file__).parents[2] / 'ppo_env.py')
    settings = script.ControlSettings(total_steps=steps, num_seeds=seeds)
    env, runs = make_env(settings), runs_of(settings)
    agent, hyper = agent_for(settings, env), hyper_of(runs)

    def first(key, rate):
        return init_control(agent, optimizer_of(settings, rate), key, env=env, num_envs=settings.num_envs)

    keys = jnp.stack([jax.random.key(one['seed']) for one in runs])
    held = [place(settings, jax.jit(jax.vmap(first))(keys, hyper.learning_rate))]
    program = Program(settings, script.make_iterations(settings, env, agent))

    def work():
        # From the state of the turn before: a step costs the same at the end of a run.
        held[0], _ = jax.block_until_ready(program(hyper, held[0], jnp.int32(settings.updates)))

    serve(work)


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]))
