"""A power cut at every moment of a save: what was not flushed is gone, and what is left must be whole.

Calls are recorded while a step is saved, then replayed up to each prefix in two ways between which every
real disk lies: folder entries reach the disk at once, or only when their folder is flushed. In both, a
file's content is what it was at its last flush.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gpt_trainer.checkpoint import (
    CheckpointState,
    find_steps,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_or_newest,
)

Tree = dict[str, bytes | None]
"""Path below the disk's root -> content, or ``None`` for a folder."""


@dataclass
class Node:
    """A file or folder of the model disk, live and as it is on the platter."""

    is_folder: bool
    content: bytes = b""
    flushed_content: bytes = b""
    children: dict[str, Node] = field(default_factory=dict)
    flushed_children: dict[str, Node] = field(default_factory=dict)


class Disk:
    """Follows the calls of the ``os`` module below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Node(is_folder=True)
        self.open_files: dict[int, Node] = {}
        self.after_call: Callable[[], None] = lambda: None
        self._copy_existing(root, self.top)

    def _copy_existing(self, folder: Path, node: Node) -> None:
        for path in folder.iterdir():
            child = Node(is_folder=path.is_dir())
            if child.is_folder:
                self._copy_existing(path, child)
            else:
                child.content = child.flushed_content = path.read_bytes()
            node.children[path.name] = node.flushed_children[path.name] = child

    def find(self, path: Any) -> tuple[Node, str]:
        *parents, name = Path(path).relative_to(self.root).parts
        node = self.top
        for part in parents:
            node = node.children[part]
        return node, name

    def node(self, path: Any) -> Node:
        if Path(path) == self.root:
            return self.top
        parent, name = self.find(path)
        return parent.children[name]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "mkdir", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink", "rmdir"):
            patch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            getattr(self, f"on_{name}")(result, *args, **kwargs)
            self.after_call()
            return result

        return wrapped

    def on_open(
        self, result: int, path: Any, flags: int, mode: int = 0, *, dir_fd: int | None = None
    ) -> None:
        if dir_fd is not None:
            self.open_files[result] = self.open_files[dir_fd].children[str(path)]
            return
        if flags & os.O_CREAT:
            parent, name = self.find(path)
            parent.children.setdefault(name, Node(is_folder=False))
        self.open_files[result] = self.node(path)

    def on_mkdir(self, result: None, path: Any, mode: int = 0) -> None:
        parent, name = self.find(path)
        parent.children[name] = Node(is_folder=True)

    def on_write(self, result: int, descriptor: int, data: Any) -> None:
        self.open_files[descriptor].content += bytes(data)[:result]

    def on_pwrite(self, result: int, descriptor: int, data: Any, offset: int) -> None:
        assert offset == 0
        self.open_files[descriptor].content = bytes(data)[:result]

    def on_ftruncate(self, result: None, descriptor: int, length: int) -> None:
        self.open_files[descriptor].content = self.open_files[descriptor].content[:length]

    def on_fsync(self, result: None, descriptor: int) -> None:
        node = self.open_files[descriptor]
        node.flushed_content, node.flushed_children = node.content, dict(node.children)

    def on_rename(self, result: None, source: Any, target: Any) -> None:
        (old, name), (new, other) = self.find(source), self.find(target)
        new.children[other] = old.children.pop(name)

    def _remove(self, result: None, path: Any, *, dir_fd: int | None = None) -> None:
        parent, name = (self.open_files[dir_fd], str(path)) if dir_fd is not None else self.find(path)
        del parent.children[name]

    on_unlink = on_rmdir = _remove

    def tree(self, *, entries_at_once: bool) -> Tree:
        """Every path after a power cut; ``None`` for a folder."""
        found: Tree = {}

        def walk(node: Node, prefix: str) -> None:
            children = node.children if entries_at_once else node.flushed_children
            for name, child in children.items():
                found[prefix + name] = None if child.is_folder else child.flushed_content
                walk(child, f"{prefix}{name}/")

        walk(self.top, "")
        return found


def power_cuts(root: Path, patch: pytest.MonkeyPatch, action: Callable[[], object]) -> list[Tree]:
    """The trees that a power cut in the course of ``action`` may leave; the last two are after its end."""
    disk, trees = Disk(root), []

    def snapshot() -> None:
        for entries_at_once in (True, False):
            tree = disk.tree(entries_at_once=entries_at_once)
            if tree not in trees[-4:]:
                trees.append(tree)

    disk.after_call = snapshot
    with patch.context() as inner:
        disk.install(inner)
        action()
    trees += [disk.tree(entries_at_once=True), disk.tree(entries_at_once=False)]
    return trees


def restore(tree: Tree, root: Path) -> Path:
    root.mkdir()
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
    return root / "run"


def whole_steps(
    run: Path, make_state: Callable[..., CheckpointState], same_state: Callable[..., bool]
) -> set[int]:
    """Steps that discovery finds; each must load and be what was saved."""
    steps = {step for step, _ in find_steps(run)}
    state = step_or_newest(run, load_checkpoint, lambda message: pytest.fail(message))
    assert state.step == max(steps)
    assert same_state(state, make_state(state.step))
    return steps


def test_a_power_cut_during_a_save_leaves_the_old_or_the_new_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_state: Callable[..., CheckpointState],
    same_state: Callable[..., bool],
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    save_checkpoint(disk / "run", make_state(1))
    trees = power_cuts(disk, monkeypatch, lambda: save_checkpoint(disk / "run", make_state(2)))
    counter = itertools.count()
    runs = [restore(tree, tmp_path / f"cut-{next(counter)}") for tree in trees]
    found = [whole_steps(run, make_state, same_state) for run in runs]
    assert len(found) > 10
    assert all(steps in ({1}, {1, 2}) for steps in found)
    assert found[0] == {1}
    # once save_checkpoint has returned, the step is on the platter whatever the disk does
    assert found[-2:] == [{1, 2}, {1, 2}]


def test_the_first_save_of_a_run_is_on_disk_when_it_returns(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_state: Callable[..., CheckpointState],
    same_state: Callable[..., bool],
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    trees = power_cuts(disk, monkeypatch, lambda: save_checkpoint(disk / "run", make_state(1)))
    for number, tree in enumerate(trees[-2:]):
        assert whole_steps(restore(tree, tmp_path / f"cut-{number}"), make_state, same_state) == {1}


def test_a_power_cut_during_retention_keeps_the_promised_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_state: Callable[..., CheckpointState],
    same_state: Callable[..., bool],
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for step in (1, 2, 3, 4):
        save_checkpoint(disk / "run", make_state(step))
    trees = power_cuts(disk, monkeypatch, lambda: prune(disk / "run", keep_last=2, best_step=1))
    counter = itertools.count()
    for tree in trees:
        run = restore(tree, tmp_path / f"cut-{next(counter)}")
        assert {1, 3, 4} <= whole_steps(run, make_state, same_state)
