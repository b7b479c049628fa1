from pathlib import Path

import pytest
import tensorflow as tf

from trainer.training.checkpoints import RunCheckpoints


def test_the_latest_is_restored_and_others_are_deleted(tmp_path: Path) -> None:
    value = tf.Variable(0.0)
    saved = RunCheckpoints(str(tmp_path), kept=2, value=value)
    saved.restore()
    assert saved.latest is None
    for step in range(1, 5):
        value.assign(step)
        saved.save(step)
    value.assign(-1.0)
    RunCheckpoints(str(tmp_path), kept=2, value=value).restore()
    assert float(value) == 4.0
    assert sorted(p.stem for p in tmp_path.glob("*.index")) == ["ckpt-3", "ckpt-4"]


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "c")])
def test_a_checkpoint_of_another_state_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    RunCheckpoints(str(tmp_path), kept=1, a=tf.Variable(1.0), b=tf.Variable(2.0)).save(1)
    state = {name: tf.Variable(0.0) for name in names}
    with pytest.raises(AssertionError):
        RunCheckpoints(str(tmp_path), kept=1, **state).restore()


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    value = tf.Variable(1.0)
    RunCheckpoints(str(tmp_path), kept=2, value=value).save(1)
    # What a kill leaves: files of the next one, which the file that names the latest does not.
    (tmp_path / "ckpt-2.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "ckpt-2.index").write_bytes(b"")
    value.assign(0.0)
    again = RunCheckpoints(str(tmp_path), kept=2, value=value)
    again.restore()
    assert float(value) == 1.0
    value.assign(2.0)
    again.save(2)
    value.assign(0.0)
    RunCheckpoints(str(tmp_path), kept=2, value=value).restore()
    assert float(value) == 2.0
