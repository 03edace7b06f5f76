"""Work that is shared out over processes: which part is whose, and how far the others are.

No process waits for another's data, so there is no collective to hang: the launcher's environment says who is who, and
small files in a folder that all see say how far they are.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError, ProblemError

Record = dict[str, Any]
"""What a line or file of JSON says of one thing."""
BEAT, SILENCE, GRACE = 2.0, 60.0, 20.0
"""Seconds: between two signs of life; after which a process elsewhere is taken for dead; for all to begin."""
_LAUNCH = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID",
           "SLURM_STEP_ID")  # fmt: skip
_RANKS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
          "OMPI_COMM_WORLD_LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))  # fmt: skip


@dataclass(frozen=True)
class Share:
    """One process's part: every `count`-th thing, from its own number on. rank of world: in one launch of several
    processes; shard of shards: of launches that know nothing of each other."""

    rank: int = 0
    world: int = 1
    local: int = 0
    shard: int = 0
    shards: int = 1

    @classmethod
    def of(cls, shard: str | None = None, environment: Mapping[str, str] = os.environ) -> Share:
        """What torchrun, accelerate launch, mpirun or srun say in the environment, and `shard`, "i/n", from 0.

        Raises ProblemError.
        """
        number, of = 0, 1
        if shard is not None:
            found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
            if found is None or not int(found[1]) < int(found[2]):
                raise ProblemError(f"shard is {shard!r}; expected i/n counted from 0, so 0/4, 1/4, 2/4 and 3/4")
            number, of = int(found[1]), int(found[2])
        for rank, world, local in _RANKS:
            if rank in environment and world in environment:
                try:
                    mine, all_, here = (int(environment.get(name, 0)) for name in (rank, world, local))
                except ValueError:
                    mine, all_, here = -1, 0, 0
                if not 0 <= mine < all_:
                    raise ProblemError(f"{rank} is {environment[rank]!r} and {world} {environment[world]!r} in the "
                                       "environment; expected a rank below the number of processes")
                return cls(mine, all_, here, number, of)
        return cls(shard=number, shards=of)

    def has(self, index: int) -> bool:
        """Whether the thing of that number is this process's."""
        return index % (self.shards * self.world) == self.shard * self.world + self.rank

    def of_launch(self, index: int) -> bool:
        """Whether it is one of this launch's."""
        return index % (self.shards * self.world) // self.world == self.shard

    @property
    def name(self) -> str:
        return f"rank {self.rank}" + (f" of shard {self.shard}/{self.shards}" if self.shards > 1 else "")


class Board:
    """How far the processes of a launch are: a small file of each in `folder`, written every now and then."""

    def __init__(self, folder: Path, share: Share) -> None:
        self.folder, self.share, self.began = folder, share, time.time()
        launch = [os.environ.get(name, "") for name in _LAUNCH]
        self.told: Record = {"host": socket.gethostname(), "pid": os.getpid(), "world": share.world,
                                     "launch": launch, "began": self.began}  # fmt: skip

    def _file(self, rank: int) -> Path:
        return self.folder / f"{self.share.shard}of{self.share.shards}-{rank}.json"

    def say(self, **what: Any) -> None:
        """Put up how far this one is; a full disk is no reason to stop here."""
        self.told |= {**what, "time": time.time()}
        file = self._file(self.share.rank)
        with suppress(OSError):
            beside = file.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(self.told), encoding="utf-8")
            os.replace(beside, file)

    def read(self) -> dict[int, Record]:
        """rank -> what it said, of those of this launch that have said something since it began."""
        found: dict[int, Record] = {}
        for rank in range(self.share.world):
            with suppress(OSError, ValueError, TypeError):
                told = dict(json.loads(self._file(rank).read_text(encoding="utf-8")))
                of_it = told["world"] == self.share.world and told["launch"] == self.told["launch"]
                if of_it and told["began"] >= self.began - SILENCE:
                    found[rank] = told
        return found

    def dead(self, told: Mapping[int, Mapping[str, Any]] | None = None) -> dict[int, str]:
        """rank -> in words, of the others that began and will not end; nothing until all had the time to begin."""
        now = time.time()
        if now < self.began + GRACE:
            return {}
        found = {}
        for rank in set(range(self.share.world)) - {self.share.rank}:
            of = (self.read() if told is None else told).get(rank)
            if of is None and now < self.began + SILENCE:
                continue
            if of is None:
                found[rank] = f"rank {rank} was never heard of"
            elif not of.get("ended") and not _lives(of):
                who, far = f"rank {rank} (process {of['pid']} on {of['host']})", of.get("done", 0)
                found[rank] = f"{who} died after {far} of its {of.get('of', '?')} pictures"
        return found

    def wait(self, ready: Callable[[], None] = lambda: None) -> dict[int, str]:
        """Wait until the others have ended, and say which of them died."""
        while True:
            told = self.read()
            dead = self.dead(told)
            ended = {rank for rank, of in told.items() if of.get("ended")}
            if len(ended | dead.keys() | {self.share.rank}) == self.share.world:
                return dead
            ready()
            time.sleep(0.2)


def _lives(told: Mapping[str, Any]) -> bool:
    if told["host"] != socket.gethostname():
        return time.time() - float(told["time"]) < SILENCE
    try:
        os.kill(int(told["pid"]), 0)
        state = Path(f"/proc/{told['pid']}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # somebody else's, or a system without /proc
        return time.time() - float(told["time"]) < SILENCE
    return state != "Z"


class Ledger:
    """A JSON-lines index that many processes add to: parts, each whole or not there, and `merge` of them into one.

    A record has a `name`; of several with the same one the newest holds.
    """

    def __init__(self, index: Path, parts: Path, write: Callable[[Path, bytes], None]) -> None:
        self.index, self.parts, self.write = index, parts, write
        self._new: list[Record] = []
        self._last = time.monotonic()

    def read(self) -> dict[str, Record]:
        """name -> record, of the index and all parts. Raises OutputError for an index that is not one."""
        found: dict[str, Record] = {}
        for file in (self.index, *sorted(self.parts.glob("*.jsonl"), key=_age)):
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                continue
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    found[record["name"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputError(f"{file}, line {number} is no record of a picture ({error!r}); delete the file, "
                                      "and it is made again from the pictures") from error
        return found

    def add(self, record: Record, most: int = 64, seconds: float = 20.0) -> None:
        """Note a record, and write a part where there are many, or it is time."""
        self._new.append(record)
        if len(self._new) >= most or time.monotonic() - self._last > seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is noted. Raises OSError; nothing is lost then."""
        if self._new:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self._new)
            self.write(self.parts / f"{self._new[0]['name']}.{time.time_ns()}.jsonl", lines.encode())
            self._new = []
        self._last = time.monotonic()

    def merge(self) -> dict[str, Record]:
        """Put all parts into the index, in order of the names; what it then holds. Raises OSError."""
        with (self.parts / "lock").open("w") as lock:
            with suppress(ImportError, OSError):  # elsewhere, or on a file system without locks
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            parts = list(self.parts.glob("*.jsonl"))
            found = self.read()
            if parts:
                lines = (json.dumps(found[name], ensure_ascii=False) + "\n" for name in sorted(found))
                self.write(self.index, "".join(lines).encode())
                for part in parts:
                    part.unlink(missing_ok=True)
        return found


def _age(part: Path) -> int:
    return int(part.suffixes[-2][1:]) if len(part.suffixes) > 1 and part.suffixes[-2][1:].isdigit() else 0
