"""The figures that stand for counting jobs: by owner and language, and by language.

They are read and written within one transaction of `job_units`, which excludes all others that move jobs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from stockade.store.job_tables import WAITS, job_counts, job_lanes

__all__ = ["Counts", "Kind", "Lane", "Tally"]


class Kind(StrEnum):
    """Where an unended job is, as it is counted."""

    READY = "ready"
    DELAYED = "delayed"
    RUNNING = "running"


@dataclass
class Lane:
    """Unended jobs of an owner in a language."""

    ready: int = 0
    unended: int = 0
    turn: int = 0


@dataclass
class Counts:
    """Jobs in a language."""

    ready: int = 0
    delayed: int = 0
    running: int = 0
    dead: int = 0

    @property
    def unended(self) -> int:
        return self.ready + self.delayed + self.running


_LANES = select(job_lanes).where(job_lanes.c.owner.in_(bindparam("owners", expanding=True)))
_LANES_OF_ONE = select(job_lanes).where(job_lanes.c.owner == bindparam("of_owner"))
_COUNTS = select(job_counts)
_LAST_TURN = select(func.max(job_lanes.c.turn)).where(WAITS)
_REMOVE = delete(job_lanes).where(
    job_lanes.c.owner == bindparam("of_owner"), job_lanes.c.language == bindparam("of_language")
)
_NEXT = select(job_lanes.c.owner, job_lanes.c.turn).where(WAITS).order_by(job_lanes.c.turn).limit(bindparam("most"))
_NEXT_OF = (
    select(job_lanes.c.owner, job_lanes.c.turn)
    .where(WAITS, job_lanes.c.language == bindparam("of_language"))
    .order_by(job_lanes.c.turn)
    .limit(bindparam("most"))
)


def _upsert(dialect: Any, table: Any) -> Any:
    query = dialect.insert(table)
    keys = [one.name for one in table.primary_key.columns]
    rest = {one.name: query.excluded[one.name] for one in table.columns if one.name not in keys}
    return query.on_conflict_do_update(index_elements=keys, set_=rest)


_SET_LANE = {is_sqlite: _upsert(sqlite if is_sqlite else postgresql, job_lanes) for is_sqlite in (True, False)}
_SET_COUNTS = {is_sqlite: _upsert(sqlite if is_sqlite else postgresql, job_counts) for is_sqlite in (True, False)}


class Tally:
    """The figures, read as they are needed, and written by `flush`."""

    def __init__(self, connection: Connection, *, is_sqlite: bool) -> None:
        self._connection = connection
        self._is_sqlite = is_sqlite
        self._lanes: dict[str, dict[str, Lane]] = {}
        self._counts: dict[str, Counts] | None = None
        self._last_turn: int | None = None
        self._changed_lanes: set[tuple[str, str]] = set()
        self._changed_counts: set[str] = set()

    def load(self, owners: Iterable[str]) -> None:
        """Read the lanes of *owners* at once; those of others are read one by one."""
        if missing := [owner for owner in dict.fromkeys(owners) if owner not in self._lanes]:
            self._lanes |= {owner: {} for owner in missing}
            rows = (
                self._connection.execute(_LANES_OF_ONE, {"of_owner": missing[0]})
                if len(missing) == 1
                else self._connection.execute(_LANES, {"owners": missing})
            )
            for row in rows:
                self._lanes[row.owner][row.language] = Lane(row.ready, row.unended, row.turn)

    def lanes(self, owner: str) -> Mapping[str, Lane]:
        """The owner's lanes by language."""
        self.load((owner,))
        return self._lanes[owner]

    def counts(self) -> Mapping[str, Counts]:
        """The figures by language."""
        return self._all_counts()

    def unended_of(self, owner: str) -> int:
        return sum(lane.unended for lane in self.lanes(owner).values())

    def unended(self) -> int:
        return sum(counts.unended for counts in self.counts().values())

    def move(self, owner: str, language: str, before: Kind | None, after: Kind | None) -> None:
        """A job has gone from *before* to *after*; `None`: it was not there, or has ended."""
        if before is after:
            return
        self.load((owner,))
        lanes, counts = self._lanes[owner], self._all_counts().setdefault(language, Counts())
        lane = lanes.setdefault(language, Lane())
        if before is not None:
            setattr(counts, before, getattr(counts, before) - 1)
        if after is not None:
            setattr(counts, after, getattr(counts, after) + 1)
        if after is Kind.READY and not any(one.ready for one in lanes.values()):
            # Who comes anew is last. Who has been waiting in another language keeps the turn it has.
            self._set_turn(owner, self._next_turn())
        elif after is Kind.READY:
            lane.turn = next(one.turn for one in lanes.values() if one.ready)
        lane.ready += (after is Kind.READY) - (before is Kind.READY)
        lane.unended += (after is not None) - (before is not None)
        self._changed_lanes.add((owner, language))
        self._changed_counts.add(language)

    def bury(self, language: str, number: int) -> None:
        """So many more jobs are dead, or fewer."""
        self._all_counts().setdefault(language, Counts()).dead += number
        self._changed_counts.add(language)

    def waiting_owners(self, languages: Iterable[str] | None, *, most: int) -> list[tuple[int, str]]:
        """Those owners whose turn is next, with it, in the order of their turns; the figures must have been written.

        Args:
            languages: only owners who wait in one of these, up to *most* of each; `None` for any, up to *most*.
        """
        found: dict[str, int] = {}
        if languages is None:
            # Lanes of one owner are neighbours: it is enough to look at some more than one for each.
            rows = self._connection.execute(_NEXT, {"most": most * max(1, len(self.counts()))})
            found = {row.owner: row.turn for row in rows}
        else:
            for language in languages:
                rows = self._connection.execute(_NEXT_OF, {"of_language": language, "most": most})
                found |= {row.owner: row.turn for row in rows}
        return sorted((turn, owner) for owner, turn in found.items())

    def serve(self, owner: str) -> int:
        """The owner has had its turn; its next one comes after everybody else's. Returns that."""
        turn = self._next_turn()
        self.load((owner,))
        self._set_turn(owner, turn)
        return turn

    def flush(self, *, with_counts: bool) -> None:
        """Write what has changed. The figures by language, which nothing but this reads, can wait for the end."""
        lanes, gone = [], []
        for owner, language in self._changed_lanes:
            lane = self._lanes[owner][language]
            if lane.unended:
                lanes.append(
                    {
                        "owner": owner,
                        "language": language,
                        "ready": lane.ready,
                        "unended": lane.unended,
                        "turn": lane.turn,
                    }
                )
            else:
                # Owners may be as many as there are addresses: those who want nothing are not remembered.
                gone.append({"of_owner": owner, "of_language": language})
                del self._lanes[owner][language]
        if lanes:
            self._connection.execute(_SET_LANE[self._is_sqlite], lanes)
        if gone:
            self._connection.execute(_REMOVE, gone)
        if with_counts and self._changed_counts:
            all_counts = self._all_counts()
            rows = [{"language": name, **vars(all_counts[name])} for name in self._changed_counts]
            self._connection.execute(_SET_COUNTS[self._is_sqlite], rows)
            self._changed_counts.clear()
        self._changed_lanes.clear()

    def _all_counts(self) -> dict[str, Counts]:
        if self._counts is None:
            rows = self._connection.execute(_COUNTS)
            self._counts = {row.language: Counts(row.ready, row.delayed, row.running, row.dead) for row in rows}
        return self._counts

    def _next_turn(self) -> int:
        if self._last_turn is None:
            self._last_turn = self._connection.scalar(_LAST_TURN) or 0
        self._last_turn += 1
        return self._last_turn

    def _set_turn(self, owner: str, turn: int) -> None:
        for language, lane in self._lanes[owner].items():
            lane.turn = turn
            self._changed_lanes.add((owner, language))
