"""Checkpoints as a user meets them: relative and moved directories, other configurations, damage, a full disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax import checkpoint, partitioning
from tisdpo_jax.checkpoint import Checkpoints, abstract, fingerprint, load_tree, save_tree
from tisdpo_jax.errors import CheckpointError, DamagedError

# What uvloop says of a loop that a restore has left behind when it failed; it names no object.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")

IDENTITY = {"loss": {"beta": 0.1}, "lora": {"rank": 4}}
STEPS = (3, 6, 9)
NOISE = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


def state(step: int) -> dict[str, Any]:
    """Large enough for files of its own: Orbax keeps small arrays in its indices."""
    return {"weights": jnp.asarray(NOISE) + step, "step": jnp.int32(step)}


def like() -> Any:
    return abstract(state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with three steps; tests work on copies, since a save takes longer than a copy."""
    directory = tmp_path_factory.mktemp("saved") / "policy"
    steps = Checkpoints(directory, keep=3)
    for step in STEPS:
        steps.save(step, state(step), IDENTITY)
    steps.wait()
    return directory


@pytest.fixture
def run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    """The same below a working directory, by the relative path that configurations use."""
    shutil.copytree(saved, tmp_path / "runs" / "mine" / "checkpoints" / "policy")
    monkeypatch.chdir(tmp_path)
    return Checkpoints(Path("runs/mine/checkpoints/policy"), keep=3)


def names(run: Checkpoints) -> list[str]:
    return sorted(os.listdir(run.directory))


def assert_restored(found: tuple[int, Any] | None, step: int) -> None:
    assert found is not None and found[0] == step
    np.testing.assert_array_equal(found[1]["weights"], state(step)["weights"])


def test_a_relative_directory_is_read_back_also_when_it_was_moved_or_is_a_link(run: Checkpoints) -> None:
    assert_restored(run.restore(like(), IDENTITY), 9)
    Path("runs").rename("elsewhere")
    assert_restored(Checkpoints(Path("elsewhere/mine/checkpoints/policy"), keep=3).restore(like(), IDENTITY), 9)
    Path("link").symlink_to("elsewhere/mine")
    assert_restored(Checkpoints(Path("link/checkpoints/policy"), keep=3).restore(like(), IDENTITY), 9)
    assert names(Checkpoints(Path("link/checkpoints/policy"), keep=3)) == ["3", "6", "9"]


def test_a_relative_tree_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tree(Path("models/policy"), state(1), IDENTITY)
    tree, identity = load_tree(Path("models/policy"), like(), None)
    assert identity == IDENTITY and int(tree["step"]) == 1


OTHERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a hyper-parameter": (None, {"loss": {"beta": 0.2}, "lora": {"rank": 4}}, r"loss\.beta \(was 0\.1, now 0\.2\)"),
    "a rank": ({"weights": (32, 48)}, {"loss": {"beta": 0.1}, "lora": {"rank": 8}}, r"lora\.rank \(was 4, now 8\)"),
    "a shape alone": ({"weights": (32, 48)}, IDENTITY, r"was \"float32\[64,48\]\", now \"float32\[32,48\]\""),
    "a dtype alone": ({"weights": jnp.bfloat16}, IDENTITY, r"was \"float32\[64,48\]\", now \"bfloat16\[64,48\]\""),
    "another leaf": ({"moment": (2,)}, IDENTITY, r"moment.*was absent"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("damaged", [False, True])
def test_another_configuration_is_refused_and_touches_nothing(run: Checkpoints, kind: str, damaged: bool) -> None:
    """Not even where a step is damaged as well: then the right command sets that aside."""
    change, identity, said = OTHERS[kind]
    if damaged:
        flip(run.directory / "9", "ocdbt.process_0/d/*")
    asked = like()
    for name, value in (change or {}).items():
        old = asked.get(name, asked["weights"])
        shape, dtype = (value, old.dtype) if isinstance(value, tuple) else (old.shape, value)
        asked[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=old.sharding)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=said) as caught:
            run.restore(asked, identity)
        assert not isinstance(caught.value, DamagedError) and "Nothing was changed" in str(caught.value)
    assert names(run) == ["3", "6", "9"]
    assert_restored(run.restore(like(), IDENTITY), 6 if damaged else 9)


def flip(step: Path, pattern: str, item: str = "state") -> None:
    file = max((step / item).glob(pattern), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the arrays": lambda step: flip(step, "ocdbt.process_0/d/*"),
    "a bit of an index": lambda step: flip(step, "manifest.ocdbt"),
    "a bit of the record": lambda step: flip(step, "d/*", "info"),
    "a lost index": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "a truncated structure": lambda step: (step / "state/_METADATA").write_bytes(b"{") and None,
    "an empty directory": empty,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops a coroutine when it fails
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_set_aside_and_the_one_before_is_taken(
    run: Checkpoints, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[kind](run.directory / "9")
    assert_restored(run.restore(like(), IDENTITY), 6)
    assert names(run) == ["3", "6", "9.quarantined"] and "checkpoint set aside: runs/mine" in caplog.text


def test_a_second_step_of_the_same_number_can_be_set_aside_too(run: Checkpoints) -> None:
    for _ in range(2):
        shutil.rmtree(run.directory / "9", ignore_errors=True)
        shutil.copytree(run.directory / "6", run.directory / "9")
        flip(run.directory / "9", "ocdbt.process_0/d/*")
        assert_restored(run.restore(like(), IDENTITY), 6)
    assert names(run) == ["3", "6", "9.quarantined", "9.quarantined-2"]


def test_without_a_good_step_every_start_is_refused_until_a_person_decides(run: Checkpoints) -> None:
    for step in STEPS:
        flip(run.directory / str(step), "ocdbt.process_0/d/*")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none that can be restored; nothing was changed"):
            run.restore(like(), IDENTITY)
        assert names(run) == ["3", "6", "9"]
    for step in STEPS:
        (run.directory / str(step)).rename(run.directory / f"{step}.quarantined")
    with pytest.raises(CheckpointError, match=r"3\.quarantined, 6\.quarantined, 9\.quarantined"):
        run.restore(like(), IDENTITY)
    shutil.rmtree(run.directory)
    assert run.restore(like(), IDENTITY) is None


def test_what_is_no_step_is_left_alone_and_what_a_killed_save_left_goes(
    run: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0099", "²", "notes", "12.orbax-checkpoint-tmp", "77x"):
        (run.directory / name).mkdir()
    (run.directory / "100").touch()  # a file
    assert_restored(run.restore(like(), IDENTITY), 9)
    assert set(names(run)) == {"0099", "²", "notes", "77x", "100", "3", "6", "9"}
    assert caplog.text.count("not the name of a checkpoint") == 5


def test_what_stands_in_the_way_of_a_good_step_is_no_damage(run: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that reads nothing at all, files without permission, memory: nothing is set aside."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("every read fails")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "load_checkpointables", broken)
        with pytest.raises(CheckpointError, match="A fresh file fails in the same way") as caught:
            run.restore(like(), IDENTITY)
    assert not isinstance(caught.value, DamagedError) and names(run) == ["3", "6", "9"]
    read, opened = checkpoint.ocp.load_checkpointables, Path.open

    def forbidden(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "_METADATA":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    def no_memory(path: Any, content: Any) -> Any:
        if "state" in content:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return read(path, content)

    (run.directory / "9/state/manifest.ocdbt").rename("kept")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        with pytest.raises(CheckpointError, match=r"cannot be read \(.*_METADATA: Permission denied"):
            run.restore(like(), IDENTITY)
    Path("kept").rename(run.directory / "9/state/manifest.ocdbt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "load_checkpointables", no_memory)
        with pytest.raises(CheckpointError, match="Memory ran out; nothing was changed"):
            run.restore(like(), IDENTITY)
    assert names(run) == ["3", "6", "9"]
    assert_restored(run.restore(like(), IDENTITY), 9)


def test_checkpoints_of_an_older_version_are_refused_not_damaged(run: Checkpoints) -> None:
    info = {"fingerprint": {"x": 1}, "run": {"seed": 0}}
    place = (run.directory / "12").resolve()
    checkpoint.ocp.save_checkpointables_async(place, {"state": state(12), "info": info}).result()
    with pytest.raises(CheckpointError, match="made by an older version"):
        run.restore(like(), IDENTITY)
    assert names(run) == ["12", "3", "6", "9"]


def test_saves_that_fail_are_borne_and_the_next_one_is_tried(
    run: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = checkpoint._writer

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_writer", full)
    run.save(12, state(12), IDENTITY)
    run.save(15, state(15), IDENTITY)
    assert caplog.text.count("No space left on device; training goes on") == 2
    monkeypatch.setattr(checkpoint, "_writer", write)
    run.save(18, state(18), IDENTITY)
    run.wait()
    assert run.steps() == [6, 9, 18]
    monkeypatch.setattr(checkpoint, "_writer", full)
    run.save(21, state(21), IDENTITY)  # a success in between: counted from one again
    run.save(24, state(24), IDENTITY)
    with pytest.raises(CheckpointError, match=r"number 3 in a row.*goes on from step 18"):
        run.save(27, state(27), IDENTITY)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    with pytest.raises(CheckpointError, match=r"cannot be written: OSError: .*No space left"):
        run.save_now(30, state(30), IDENTITY)


def test_a_directory_that_cannot_be_written_is_found_before_orbax_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", lambda *_: pytest.fail("too late"))
    (tmp_path / "models").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_tree(tmp_path / "models" / "policy", state(0), IDENTITY)


TREE = {
    "embedding": np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32),
    "layers": np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32),
    "norm": np.random.default_rng(2).normal(size=4).astype(np.float32),
    "half": np.random.default_rng(3).normal(size=(4, 4)).astype(jnp.bfloat16),
    "packed": np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
}
CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a negated matrix": lambda tree: {"half": -tree["half"]},
    "a transposed matrix": lambda tree: {"half": tree["half"].T},
    "two layers changed over": lambda tree: {"layers": tree["layers"][[1, 0, 2]]},
    "all layers turned": lambda tree: {"layers": np.roll(tree["layers"], 1, 0)},
    "layers transposed": lambda tree: {"layers": tree["layers"].swapaxes(1, 2)},
    "a permuted vocabulary": lambda tree: {"embedding": tree["embedding"][[0, 1, 2, 4, 3, 5, 6]]},
    "permuted channels": lambda tree: {"embedding": tree["embedding"][:, ::-1]},
    "two leaves changed over": lambda tree: {"layers": np.stack([tree["layers"][0]] * 3), "norm": tree["norm"][::-1]},
    "another shape of the same bytes": lambda tree: {"half": tree["half"].reshape(2, 8)},
    "another dtype of the same bytes": lambda tree: {"packed": tree["packed"].view(np.uint8)},
    "the last bit of one number": lambda tree: {"norm": (tree["norm"].view(np.uint32) ^ [0, 0, 1, 0]).view(np.float32)},
    "the sign of a zero": lambda tree: {"norm": np.asarray([0.0, -0.0, 1, 1], np.float32)},
    "sums kept, numbers moved": lambda tree: {"packed": np.roll(tree["packed"], 1)},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_fingerprint_sees_every_bit_and_its_place(kind: str) -> None:
    changed = CHANGES[kind](TREE)
    before, after = fingerprint(TREE), fingerprint({**TREE, **changed})
    assert {key for key in before if before[key] != after[key]} == {f"['{name}']" for name in changed}


def test_a_fingerprint_is_the_same_on_every_mesh() -> None:
    whole = fingerprint(TREE)
    mesh = partitioning.make_mesh(1, 4, 2)
    for spec in ((None, "tensor"), ("fsdp", None), ("fsdp", "tensor")):
        placed = jax.device_put(TREE["half"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        assert fingerprint({"half": placed})["['half']"] == whole["['half']"]
