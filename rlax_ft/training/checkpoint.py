"""Checkpoints of a run, written by orbax: the state and a small record beside it.

Leaves out the run folder around them (harness/run.py).
"""

import contextlib
import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from rlax_ft.errors import InputError

_open: dict[Path, 'Checkpoints'] = {}  # What this process writes to and has not closed.


class Checkpoints:
    """The checkpoints under one folder; a save is atomic and runs in the background."""

    def __init__(self, folder: str | Path, keep: int = 2, *, tidy: bool = False):
        """Opens the folder, which is made by the first save.

        Args:
          folder: where checkpoints go, one subfolder a step.
          keep: how many of the latest remain.
          tidy: remove what a save left that was cut off; nobody else may be writing there.

        Raises:
          InputError: there is something else under that name.
        """
        self.folder, self._keep = Path(folder).absolute(), keep
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f'{self.folder}: checkpoints go into a folder of this name, and it is a file')
        if self.folder in _open:
            # A run that ended in an exception may still be saving in the background, and nobody waits for it.
            with contextlib.suppress(Exception):
                _open.pop(self.folder).close()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={'state': ocp.StandardCheckpointHandler(), 'record': ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=tidy, lightweight_initialize=True
            ),
        )
        if tidy:
            _open[self.folder] = self

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

    def newest(self, like):
        """(state, step) of the newest checkpoint that can be read; (`like`, 0) where there is none at all.

        Newer ones that cannot be read are set aside, with a warning.

        Args:
          like: as in `restore`.

        Raises:
          InputError: none of them can be read, or it holds other arrays than `like`.
        """
        broken = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, _ = self.restore(like, step)
            except InputError:
                raise
            except Exception as error:  # Whatever the files in it make of the libraries that read them.
                broken[step] = _in_a_line(error)
                continue
            for other, reason in broken.items():
                aside = self._set_aside(other)
                logging.warning(
                    '%s: cannot be read (%s); it is now %s, and step %d, the newest that can be, is resumed',
                    *(self.folder / str(other), reason, aside.name, step),
                )
            return state, step
        if broken:
            step, reason = next(iter(broken.items()))
            raise InputError(
                f'{self.folder / str(step)}: cannot be read ({reason}), nor can an earlier one; mend it, give another '
                '--out, or --resume=false to start anew'
            )
        return like, 0

    def read(self, step: int):
        """The saved pytree of `step` as nested dicts and lists, for who does not know its structure.

        Raises:
          InputError: there is no such step, or it cannot be read.
        """
        if step not in self._manager.all_steps():
            steps = ', '.join(map(str, self._manager.all_steps())) or 'none'
            raise InputError(f'{self.folder}: no checkpoint of that step; there are: {steps}')
        try:
            # Onto one device, wherever its arrays lay when it was saved: those devices may not be here.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            tree = self._manager.item_metadata(step).state.tree
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state
        except Exception as error:
            raise InputError(f'{self.folder / str(step)}: cannot be read ({_in_a_line(error)})') from error

    def record(self) -> dict:
        """The record beside the newest checkpoint; empty where there is none."""
        step = self.latest_step()
        if step is None:
            return {}
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record

    def close(self) -> None:
        """Waits for saves under way, and removes what a process that was killed had no time to remove."""
        if _open.get(self.folder) is self:
            del _open[self.folder]
        self._manager.wait_until_finished()
        for step in sorted(self._manager.all_steps())[: -self._keep]:
            self._manager.delete(step)
        self._manager.close()

    def _set_aside(self, step):
        """Renames a checkpoint so that it is none; it stays for whoever can mend it."""
        number = next(n for n in range(10_000) if not (self.folder / f'broken-{step}-{n}').exists())
        aside = self.folder / f'broken-{step}-{number}'
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(aside)
        self._manager.reload()
        return aside

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


def _in_a_line(error):
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shapes(tree):
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
        for path, leaf in named
        if hasattr(leaf, 'shape')
    }
