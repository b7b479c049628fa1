"""Several devices against one: processes that TF_CONFIG names, and virtual CPUs."""

import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_runs import Zygote, ends_alike

from storage.user_errors import UserError
from trainer.training.checkpoints import RunCheckpoints
from trainer.training.distribution import is_chief, training_strategy, wait_for_all, worker_count

# Gradients of the first steps have a norm above this, and of the last below.
CLIPPING = {"max_gradient_norm": 0.8}
# The U-Net, which takes ten times as long to trace, is in the slow tests, with every feature.
ORDER = {"overrides": CLIPPING, "plain": True}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tf_configs(count: int) -> list[dict]:
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(count)
    ]


def run_workers(zygote: Zygote, folder: Path, *own: Mapping, **order) -> list[tuple[int, str]]:
    pids = [
        zygote.start(folder=str(folder), tf_config=tf_config, **order, **options)
        for tf_config, options in zip(tf_configs(len(own)), own, strict=True)
    ]
    return [zygote.wait(pid) for pid in pids]


@pytest.fixture(scope="module")
def one_process(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_process")
    status, log = zygote.run(folder=str(folder), **ORDER)
    assert status == 0, log
    with np.load(folder / "end.npz") as end:
        norms = end["losses"][:, 3]
    assert norms[0] > CLIPPING["max_gradient_norm"] > norms[-1]
    return folder


def test_two_devices_and_parts_of_a_batch_are_one_device_with_the_whole(
    zygote: Zygote, one_process: Path, tmp_path: Path
) -> None:
    order = {**ORDER, "overrides": {**CLIPPING, "accumulation_steps": 2}}
    status, log = zygote.run(folder=str(tmp_path), virtual_cpus=2, **order)
    assert status == 0, log
    ends_alike(one_process, tmp_path)


def test_two_devices_take_the_same_bucket(zygote: Zygote, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, devices in zip(folders, ({}, {"virtual_cpus": 2}), strict=True):
        folder.mkdir()
        order = {**ORDER, "shapes": [[8, 8], [16, 8]], "held_out": 6}
        status, log = zygote.run(folder=str(folder), **order, **devices)
        assert status == 0, log
    ends_alike(*folders)


@pytest.mark.slow
def test_two_devices_learn_a_word_as_one_does(zygote: Zygote, tmp_path: Path) -> None:
    order = {**ORDER, "word": True}
    for name, devices in (("one", {}), ("two", {"virtual_cpus": 2})):
        status, log = zygote.run(folder=str(tmp_path / name), **devices, **order)
        assert status == 0, log
    ends_alike(tmp_path / "one", tmp_path / "two")


def test_two_workers_of_which_one_is_stopped_end_as_one_process_with_the_whole_batch(
    zygote: Zygote, one_process: Path, tmp_path: Path
) -> None:
    # The second is told to stop in step 3; both know of it after step 4.
    stopped = run_workers(zygote, tmp_path, {}, {"signal": "SIGTERM", "at_step": 3}, **ORDER)
    for status, log in stopped:
        assert status == 1
        assert "TrainingInterruptedError: training was told to stop (SIGTERM) and saved step" in log
    [(first,), (second,)] = [re.findall(r"saved step (\d+) of 6", log) for _, log in stopped]
    assert first == second == "4"
    assert not (tmp_path / "end.npz").exists()

    resumed = run_workers(zygote, tmp_path, {}, {}, **ORDER)
    for status, log in resumed:
        assert status == 0, log
        assert "Resuming at step 4 of 6." in log
    ends_alike(one_process, tmp_path)


@pytest.mark.slow
def test_the_chief_alone_writes(zygote: Zygote, one_process: Path, tmp_path: Path) -> None:
    # Each with a folder of its own, to see who writes.
    folders = [tmp_path / "chief", tmp_path / "worker"]
    pids = [
        zygote.start(folder=str(folder), tf_config=tf_config, **ORDER)
        for folder, tf_config in zip(folders, tf_configs(2), strict=True)
    ]
    for pid in pids:
        status, log = zygote.wait(pid)
        assert status == 0, log
    ends_alike(one_process, folders[0])
    assert {"history.jsonl", "checkpoint", "ckpt-6.index"} <= set(os.listdir(folders[0]))
    assert not folders[1].exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 2, "lora_alpha": 4.0},
        {"train_text_encoder": True, "gradient_checkpointing": True},
        {"precision": "float16", "accumulation_steps": 2},
    ],
    ids=str,
)
def test_two_devices_are_one_with_every_feature(
    zygote: Zygote, tmp_path: Path, options: Mapping
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, devices in zip(folders, ({}, {"virtual_cpus": 2}), strict=True):
        status, log = zygote.run(folder=str(folder), overrides=options, **devices)
        assert status == 0, log
    # In 16 bits, a sum in another order rounds otherwise.
    ends_alike(*folders, rtol=2e-2 if "precision" in options else 1e-5)


def test_without_tf_config_and_gpus_there_is_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert training_strategy("all") is None
    assert worker_count(None) == 1
    assert is_chief(None)
    wait_for_all(None)


def test_one_device_is_one_whatever_tf_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps(tf_configs(2)[0]))
    assert training_strategy("one") is None


def test_a_cluster_of_one_is_one_device(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    # Vertex AI sets TF_CONFIG for a single machine, too.
    caplog.set_level(logging.INFO)
    config = {"cluster": {"chief": ["localhost:2222"]}, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert training_strategy("all") is None
    assert "workers" not in caplog.text


@pytest.mark.parametrize("text", ["{cluster", "[]", '{"cluster": 3}', '{"cluster": {"worker": 1}}'])
def test_a_tf_config_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=r"TF_CONFIG is .* it must be JSON with a cluster") as error:
        training_strategy("all")
    assert text in str(error.value)


class _Cluster:
    """As much of a strategy as is asked who it is."""

    def __init__(self, cluster: Mapping, kind: str, index: int) -> None:
        self.cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=kind, task_id=index
        )


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 0, True),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", 0, True),
        ({"chief": ["a:1"], "worker": ["b:1"], "evaluator": ["c:1"]}, "worker", 0, False),
    ],
)
def test_who_is_the_chief(cluster: Mapping, kind: str, index: int, chief: bool) -> None:
    strategy = _Cluster(cluster, kind, index)
    assert is_chief(strategy) == chief
    assert worker_count(strategy) == 2


def test_a_checkpoint_of_one_device_is_read_on_two(tmp_path: Path) -> None:
    """See `test_two_workers...` for the other way: its checkpoints are a strategy's."""
    RunCheckpoints(str(tmp_path), kept=1, value=tf.Variable(2.0)).save(1)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        value = tf.Variable(0.0)
    RunCheckpoints(str(tmp_path), kept=1, value=value).restore()
    assert float(value.numpy()) == 2.0
