"""Checkpoints of a run, written by orbax: the state and a small record beside it.

Leaves out the run folder around them (experiments/run.py).
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from rlax_ft.errors import InputError


class Checkpoints:
    """The checkpoints under one folder; a save is atomic and runs in the background."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens the folder, which is made by the first save.

        Args:
          folder: where checkpoints go, one subfolder a step.
          keep: how many of the latest remain.
        """
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={'state': ocp.StandardCheckpointHandler(), 'record': ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state, record: dict | None = None) -> None:
        """Saves a pytree and a JSON record as of `step`; a step that is there already stays."""
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record or {}))
        self._manager.save(step, args=args)

    def restore(self, like, step: int | None = None):
        """Reads (state, record) of `step`, or of the newest one.

        Args:
          like: a pytree of arrays of the same structure; the result has its dtypes and shardings.
          step: which one; the newest when absent.

        Raises:
          InputError: there is none, or it holds other arrays than `like`: the first difference is named.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise InputError(f'{self.folder}: no checkpoint here; give a run folder whose run has saved one')
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), record=ocp.args.JsonRestore())
        self._check_shapes(like, step)
        restored = self._manager.restore(step, args=args)
        return restored.state, restored.record

    def read(self, step: int):
        """The saved pytree of `step` as nested dicts and lists, for who does not know its structure.

        Raises:
          InputError: there is no such step.
        """
        if step not in self._manager.all_steps():
            steps = ', '.join(map(str, self._manager.all_steps())) or 'none'
            raise InputError(f'{self.folder}: no checkpoint of that step; there are: {steps}')
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state

    def record(self) -> dict:
        """The record beside the newest checkpoint; empty where there is none."""
        step = self.latest_step()
        if step is None:
            return {}
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_shapes(self, like, step):
        # A random key is saved as the numbers behind it.
        wanted = _shapes(jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, like))
        saved = _shapes(self._manager.item_metadata(step).state.tree)
        for name in sorted(saved.keys() | wanted.keys()):
            found, right = saved.get(name, 'nothing'), wanted.get(name, 'nothing')
            if found != right:
                raise InputError(
                    f'{self.folder / str(step)}: a checkpoint of another model: {name} is {found} there and {right} '
                    'here; give the settings that it was made with'
                )


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shapes(tree):
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
        for path, leaf in named
        if hasattr(leaf, 'shape')
    }
