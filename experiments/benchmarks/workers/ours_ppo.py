"""PPO of ppo_env.py, as a worker of control.py: `ours_ppo.py STEPS SEEDS`, all updates of the script's own program."""

import sys
from pathlib import Path

import jax

from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.
from rlax_ft.harness.command_line import prepare_process
from rlax_ft.harness.env_run import first_state
from rlax_ft.harness.env_setup import EnvSettings, agent_for, hyper_of, layout_of, make_envs, runs_of
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.race import serve


def main(steps: int, seeds: int) -> None:
    """Serves whole runs, for so many seeds."""
    script = load_script(Path(__file__).parents[2] / 'ppo_env.py')
    settings = EnvSettings(total_steps=steps, num_seeds=seeds)
    layout, envs, runs = layout_of(settings), make_envs(settings), runs_of(settings)
    agent, hyper = agent_for(settings, envs), hyper_of(runs)
    iteration = script.make_iteration(settings, agent)
    program = envs.program(iteration, agent, layout, num_steps=settings.num_steps)
    held = [layout.place(first_state(settings, envs, agent, runs, hyper))]

    def work():
        # From the state of the turn before: a step costs the same at the end of a run.
        held[0], _ = jax.block_until_ready(program(hyper, held[0], settings.updates))

    serve(work)


if __name__ == '__main__':
    prepare_process()  # As run_script does.
    main(int(sys.argv[1]), int(sys.argv[2]))
