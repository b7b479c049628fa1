"""Walks up and down the lineage.

The whole graph is read as plain numbers in two queries and walked in memory: 80,000 events take a
fifth of a second. One query per step of the way, or MLMD's own lineage query, takes many seconds.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Set


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a walk visited.

    Attributes:
        artifacts: Ids of artifacts, including those that it began with.
        executions: Ids of executions.
    """

    artifacts: frozenset[int]
    executions: frozenset[int]


class Graph:
    """Which artifacts each execution used and produced."""

    def __init__(
        self,
        events: Iterable[tuple[int, int, bool, bool]],
        compared: Set[tuple[int, int]] = frozenset(),
        started: Set[tuple[int, int]] = frozenset(),
        reused: Set[int] = frozenset(),
        complete: Set[int] = frozenset(),
    ) -> None:
        """Takes the events of a store.

        Args:
            events: Execution, artifact, whether the execution produced it, and whether it only
                looked it up, in the order in which they were written.
            compared: Pairs of execution and artifact: the execution only compares with the
                artifact (the baseline of an evaluation).
            started: Pairs of execution and artifact: a training starts from the artifact, a model.
            reused: Executions that took their outputs from the cache.
            complete: Executions that made their outputs.
        """
        self._inputs: dict[int, list[int]] = collections.defaultdict(list)
        self._outputs: dict[int, list[int]] = collections.defaultdict(list)
        self._consumers: dict[int, list[int]] = collections.defaultdict(list)
        self._leavers: dict[int, list[int]] = collections.defaultdict(list)
        self._compared = compared
        self._started = started
        self._reused = reused
        resolvers: set[int] = set()
        makers: set[int] = set()
        for execution, artifact, output, internal in events:
            if output:
                self._outputs[execution].append(artifact)
                self._leavers[artifact].append(execution)
                (resolvers if internal else makers).add(execution)
            else:
                self._inputs[execution].append(artifact)
                self._consumers[artifact].append(execution)
        # A resolver does not derive its output from the many artifacts that it chooses from.
        self._resolvers = resolvers - makers
        self._complete = complete

    def inputs(self, execution: int) -> list[int]:
        """Ids of the artifacts that an execution used."""
        return self._inputs.get(execution, [])

    def outputs(self, execution: int) -> list[int]:
        """Ids of the artifacts that an execution produced, made or taken from the cache."""
        return self._outputs.get(execution, [])

    def consumers(self, artifact: int) -> list[int]:
        """Ids of the executions that used an artifact, without resolvers."""
        return [e for e in self._consumers.get(artifact, []) if e not in self._resolvers]

    def maker(self, artifact: int) -> int | None:
        """Id of the execution that made an artifact; None if the store does not say.

        Later executions that also produced it took it from the cache or imported it again.
        """
        leavers = self._leavers.get(artifact, [])
        candidates = [e for e in leavers if e not in self._reused and e not in self._resolvers]
        done = [e for e in candidates if e in self._complete]
        return min(done or candidates or leavers, default=None)

    def leavers(self, artifact: int) -> list[int]:
        """Ids of all executions that produced an artifact, made or taken from the cache."""
        return [e for e in self._leavers.get(artifact, []) if e not in self._resolvers]

    def started_from(self, execution: int) -> list[int]:
        """Ids of the models that a training started from: one or none."""
        return [a for a in self.inputs(execution) if (execution, a) in self._started]

    def upstream(
        self, artifacts: Iterable[int], comparisons: bool = True, models_before: bool = True
    ) -> Walk:
        """Everything that these artifacts were made from.

        Args:
            artifacts: Where to begin.
            comparisons: Whether to include what was only compared with.
            models_before: Whether to include models that a training started from.
        """
        seen = set(artifacts)
        executions: set[int] = set()
        waiting = list(seen)
        while waiting:
            maker = self.maker(waiting.pop())
            if maker is None or maker in executions:
                continue
            executions.add(maker)
            for artifact in self.inputs(maker):
                if (
                    artifact not in seen
                    and (comparisons or (maker, artifact) not in self._compared)
                    and (models_before or (maker, artifact) not in self._started)
                ):
                    seen.add(artifact)
                    waiting.append(artifact)
        return Walk(frozenset(seen), frozenset(executions))

    def downstream(self, artifacts: Iterable[int], comparisons: bool = True) -> Walk:
        """Everything that was made from these artifacts; see `upstream`."""
        seen = set(artifacts)
        executions: set[int] = set()
        waiting = list(seen)
        while waiting:
            artifact = waiting.pop()
            for execution in self._consumers.get(artifact, ()):
                if execution in executions or execution in self._resolvers:
                    continue
                if not comparisons and (execution, artifact) in self._compared:
                    continue
                executions.add(execution)
                for output in self.outputs(execution):
                    if output not in seen:
                        seen.add(output)
                        waiting.append(output)
        return Walk(frozenset(seen), frozenset(executions))
