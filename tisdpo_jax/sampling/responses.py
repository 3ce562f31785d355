"""Answers on disk: a line of JSON each, appended as they are made and found again by id.

    {"id": "p1/plus/0", "response": "...", "finish": "stop"[, "reason": "..."][, "ids": [...], "logps": [...]]}

`finish`: "stop", answered; "length", unfinished; "too long", the prompt, nothing was asked; "filtered" and "failed", an
endpoint withheld the answer, or has none: `reason` has its words. All of them are answers, and none is asked for again.
A job that was killed goes on from what is there; a line that was being written then is dropped and made again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from tisdpo_jax.errors import DataError

log = logging.getLogger(__name__)

Finish = Literal["stop", "length", "too long", "filtered", "failed"]
KINDS = {
    "too long": "with a prompt that is too long",
    "filtered": "filtered",
    "failed": "failed",
    "length": "unfinished",
    "stop": "complete",
}


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer under the id of its question. Other engines than our own bring neither `ids` nor `logps`."""

    id: str
    response: str
    finish: Finish = "stop"
    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()  # of `ids` under the model as it is: temperature 1, no filter
    reason: str = ""  # why the answer is not whole, in the words of the endpoint

    @property
    def empty(self) -> bool:
        return self.finish != "too long" and not self.response.strip()

    @property
    def kind(self) -> str:
        """What became of the question, a value of KINDS, or "empty"."""
        return "empty" if self.finish == "stop" and self.empty else KINDS[self.finish]


def append_responses(path: Path, responses: Iterable[Response]) -> None:
    """Adds lines; they are on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a lone surrogate, which a model can write, is no UTF-8: ASCII has an escape for it
    lines = [json.dumps(_record(response)) + "\n" for response in responses]
    with path.open("a", encoding="ascii") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def resume_responses(path: Path) -> dict[str, Response]:
    """What is there, by id; none where there is no file. A torn last line is cut off the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("%s: the last line was not written to its end; it is dropped and made again", path)
        os.truncate(path, whole)
    return read_responses(path)


def read_responses(path: Path, wanted: Collection[str] | None = None) -> dict[str, Response]:
    """The responses of a file by id. With `wanted`, exactly these ids have to be there.

    Raises: DataError that names file and line: a line that is no response, a second one for an id, an id that nobody
      asked for; or the ids that are missing.
    """
    known = None if wanted is None else set(wanted)
    found: dict[str, Response] = {}
    lines: dict[str, int] = {}
    try:
        rows = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(rows, start=1):
        if not line.strip():
            continue
        response = _parse(line, f"{path}:{number}")
        if response.id in found:
            raise DataError(
                f"{path}:{number}: a second response for id {response.id!r}, as at line {lines[response.id]}; "
                "remove one of them"
            )
        if known is not None and response.id not in known:
            raise DataError(f"{path}:{number}: id {response.id!r} is none of those that were asked; remove the line")
        found[response.id], lines[response.id] = response, number
    if known is not None and (missing := sorted(known - found.keys())):
        listed = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{path}: {len(missing)} of {len(known)} responses are missing, for ids {listed}; add them")
    return found


def _record(response: Response) -> dict[str, Any]:
    record: dict[str, Any] = {"id": response.id, "response": response.response, "finish": response.finish}
    if response.reason:
        record["reason"] = response.reason
    if response.ids:
        record |= {"ids": response.ids, "logps": response.logps}
    return record


def _parse(line: str, where: str) -> Response:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); mend or remove the line") from None
    if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
        raise DataError(f'{where}: not a response; it must be {{"id": ..., "response": "..."}}')
    if not isinstance(record.get("response"), str):
        raise DataError(f"{where}: id {record['id']!r} has no text under 'response'")
    finish = record.get("finish", "stop")
    if finish not in get_args(Finish):
        raise DataError(f"{where}: finish is {finish!r}; it must be one of {', '.join(get_args(Finish))}")
    reason, ids, logps = record.get("reason", ""), record.get("ids", []), record.get("logps", [])
    if not isinstance(reason, str):
        raise DataError(f"{where}: reason is {reason!r}; it must be text")
    for name, values in (("ids", ids), ("logps", logps)):
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise DataError(f"{where}: {name} must be a list of numbers; mend or remove it")
    return Response(str(record["id"]), record["response"], finish, tuple(ids), tuple(logps), reason)
