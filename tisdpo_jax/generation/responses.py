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
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from tisdpo_jax.artifacts import differences, write_text
from tisdpo_jax.data import Prompt, Unusable, read_file
from tisdpo_jax.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

Finish = Literal["stop", "length", "too long", "filtered", "failed"]
KINDS = {
    "too long": "with a prompt that is too long",
    "filtered": "filtered",
    "failed": "failed",
    "length": "unfinished",
    "stop": "complete",
}
NO_ANSWER = ("too long", "filtered", "failed")
LISTED = 20  # answers that an endpoint did not give, of those that the terminal shows


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer under the id of its prompt. Other engines than our own bring neither `ids` nor `logps`."""

    id: str
    response: str  # without the end token and what it stands for; ends before a stop string
    finish: Finish = "stop"
    ids: tuple[int, ...] = ()  # with the end token, if one came
    logps: tuple[float, ...] = ()  # of `ids` under the model as it is: temperature 1, no filter
    reason: str = ""  # why the answer is not whole, in the words of the endpoint

    @property
    def empty(self) -> bool:
        return self.finish != "too long" and not self.response.strip()

    @property
    def kind(self) -> str:
        """What became of the prompt, a value of KINDS, or "empty"."""
        return "empty" if self.finish == "stop" and self.empty else KINDS[self.finish]

    @property
    def text(self) -> str | None:
        """What was answered; None for what is no answer."""
        return None if self.finish in NO_ANSWER else self.response


class Lines:
    """Records of a .jsonl by what their `field` holds, appended as they come. One process writes at a time."""

    def __init__(self, path: Path, field: str = "id") -> None:
        """Reads what is there; a last line that a kill has torn is cut off the file. Raises: DataError."""
        self.path, self.field = path, field
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning("%s: the last line was not written to its end; it is dropped and made again", path)
            os.truncate(path, whole)
        self.rows = _read_lines(path, field) if content[:whole].strip() else {}  # name -> (where, record)

    def get(self, name: str) -> dict[str, Any] | None:
        return self.rows[name][1] if name in self.rows else None

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records that are not there yet; they are on the disk when this returns."""
        fresh = {str(record[self.field]): dict(record) for record in records}
        fresh = {name: record for name, record in fresh.items() if name not in self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # a lone surrogate, which a model can write, is no UTF-8: ASCII has an escape for it
        with self.path.open("a", encoding="ascii") as file:
            file.writelines(json.dumps(record) + "\n" for record in fresh.values())
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {name: (str(self.path), record) for name, record in fresh.items()}


def _read_lines(path: Path, field: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """(where, record) by what `field` holds. Raises: DataError for a line that is none, or a second one for a name."""
    lines: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in read_file(path, str(path), kind=".jsonl"):
        record, where = row.value, f"{path}:{row.place}"
        if isinstance(record, Unusable):
            raise DataError(f"{where}: {record.reason} ({record.detail}); mend or remove the line")
        if not isinstance(record, dict) or not isinstance(record.get(field), str | int):
            raise DataError(f"{where}: not a record of this file, which have {field!r}; mend or remove the line")
        name = str(record[field])
        if name in lines:
            line = lines[name][0].rpartition(":")[2]
            raise DataError(f"{where}: a second record for {field} {name!r}, as at line {line}; remove one of them")
        lines[name] = (where, record)
    return lines


def as_line(response: Response) -> dict[str, Any]:
    """The record of a response in its file."""
    record: dict[str, Any] = {"id": response.id, "response": response.response, "finish": response.finish}
    if response.reason:
        record["reason"] = response.reason
    return record | ({"ids": response.ids, "logps": response.logps} if response.ids else {})


def read_response(record: Mapping[str, Any], where: str) -> Response:
    """The response of a record. Raises: DataError that says what is wrong with it."""
    name, text, finish = record["id"], record.get("response"), record.get("finish", "stop")
    reason, ids, logps = record.get("reason", ""), record.get("ids", []), record.get("logps", [])
    problem = ""
    if not isinstance(text, str):
        problem = f"id {name!r} has no text under 'response'"
    elif finish not in get_args(Finish):
        problem = f"finish is {finish!r}; it must be one of {', '.join(get_args(Finish))}"
    elif not isinstance(reason, str):
        problem = f"reason is {reason!r}; it must be text"
    for key, values in (("ids", ids), ("logps", logps)):
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            problem = problem or f"{key} must be a list of numbers; mend or remove it"
    if problem:
        raise DataError(f"{where}: {problem}")
    return Response(str(name), str(text), finish, tuple(ids), tuple(logps), reason)


def read_responses(path: Path, wanted: Collection[str]) -> dict[str, Response]:
    """The responses of a file, which has to hold exactly these ids.

    Raises: DataError that names file and line: a line that is no response, a second one for an id, an id that nobody
      asked for; or the ids that are missing.
    """
    known, responses = set(wanted), {}
    for name, (where, record) in _read_lines(path, "id").items():
        responses[name] = read_response(record, where)
        if name not in known:
            raise DataError(f"{where}: id {name!r} is none of those that were asked; remove the line")
    if missing := sorted(known - responses.keys()):
        listed = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{path}: {len(missing)} of {len(known)} responses are missing, for ids {listed}; add them")
    return responses


def read_answers(path: str, prompts: Sequence[Prompt]) -> list[str | None]:
    """Answers of a .jsonl: `{"id" or "prompt", "response"[, "finish"]}`; None for a prompt that it does not answer.

    A response that `finish` says was filtered, failed, or never asked for is none.

    Raises: DataError for a record that is no answer, or a file that answers none of the prompts.
    """
    answers: dict[str, str] = {}
    for row in read_file(Path(path).expanduser(), path):
        record = row.value if isinstance(row.value, Mapping) else {}
        name, answer = record.get("id", record.get("prompt")), record.get("response", record.get("answer"))
        if name is None or not isinstance(answer, str):
            raise DataError(f"{path}:{row.place}: needs text in 'response', and 'id' or 'prompt'; mend the record")
        if record.get("finish", "stop") not in NO_ANSWER:
            answers[str(name)] = answer
    texts = [answers.get(prompt.id, answers.get(prompt.text)) for prompt in prompts]
    if all(text is None for text in texts):
        raise DataError(f"{path}: answers none of the {len(prompts)} prompts; ids or prompts must be the same")
    return texts


def check_key(path: Path, key: Mapping[str, Any]) -> None:
    """Leaves beside `path` what its answers are made of. Raises: CheckpointError where it is something else."""
    label = path.with_name(path.stem + ".key.json")
    if not label.exists():
        if jax.process_index() == 0:
            label.parent.mkdir(parents=True, exist_ok=True)
            write_text(label, json.dumps(key, sort_keys=True, indent=1) + "\n")
        return
    changed = differences(json.loads(label.read_text(encoding="utf-8")), key)
    if changed:
        raise CheckpointError(
            f"{path}: was made with another configuration: {'; '.join(changed)}. Nothing was changed: go back to "
            f"those values, use a new run_dir, or delete {path.name} and {label.name} to ask again"
        )


def summary(responses: Sequence[Response]) -> str:
    """Counts of what became of the prompts on a line, and a line for each that the endpoint has no answer to."""
    kinds = ("empty", *(name for finish, name in KINDS.items() if finish != "stop"))
    counts = {name: sum(response.kind == name for response in responses) for name in kinds}
    shown = [f"{count} {name}" for name, count in counts.items() if count or name in ("empty", KINDS["length"])]
    told = [response for response in responses if response.reason]
    lines = [f"{len(responses)} answers: {', '.join(shown)}"]
    lines += [f"  {response.id}: {response.kind}: {response.reason}" for response in told[:LISTED]]
    if len(told) > LISTED:
        lines.append(f"  ... and {len(told) - LISTED} more, all of them in the file, under `reason`")
    return "\n".join(lines)
