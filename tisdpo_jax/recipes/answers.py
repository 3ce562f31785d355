"""Answers of models to prompts: generated and kept, or read from a file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tisdpo_jax import partitioning
from tisdpo_jax.data import Message, conversation_text, open_template, prompt_ids
from tisdpo_jax.data.files import read_file
from tisdpo_jax.data.records import Unusable
from tisdpo_jax.errors import DataError
from tisdpo_jax.judging import Store, key_of
from tisdpo_jax.recipes.evaluate import end_tokens
from tisdpo_jax.recipes.subjects import Subject, model_files
from tisdpo_jax.sampling import generate
from tisdpo_jax.stages import models
from tisdpo_jax.stages.positions import warn_of_rows
from tisdpo_jax.stages.session import Session
from tisdpo_jax.training.progress import progress

log = logging.getLogger(__name__)

NONE = ("filtered", "failed", "too long")  # `finish` of responses that are no answers


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt that models answer, and the id by which a file of answers finds it."""

    id: str
    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        return conversation_text(self.messages)


def generated(session: Session, subject: Subject, prompts: Sequence[Asked], store: Store) -> list[str | None]:
    """The subject's answer to each prompt, in its own tokenizer and template; those in `store` are not made again.

    None where the template cannot write the prompt.
    """
    config, section = session.config, session.config.evaluation
    tokenizer, template = subject.tokenizer, open_template(config.data.template, subject.tokenizer)
    room = max(config.data.max_length, 2) - 1
    rows: list[list[int]] = []
    for prompt in prompts:
        try:
            written = prompt_ids(prompt.messages, tokenizer, template, system=config.data.system, max_length=room)
            rows.append(written.tolist())
        except Unusable as problem:
            log.warning("prompt %s is not answered by %s: %s", prompt.id, subject.name, problem.reason)
            rows.append([])
    lengths = [len(ids) + section.max_new_tokens for ids in rows if ids]
    what, field = "prompts with the longest answers that they may get", "data.max_length, or evaluation.max_new_tokens,"
    warn_of_rows(lengths, subject.model.config, subject.source, what, field)
    ends = end_tokens(tokenizer, config.data.template, model_files(session, subject))
    settings = [
        *ends,
        *(section.max_new_tokens, section.judge.temperature, section.seed, config.model.dtype),
        *(models.identify(tree) for tree in subject.variables.values()),
        subject.model.compute.lora_scale if "lora" in subject.variables else 1.0,
        repr(subject.model.config),
    ]
    keys = [key_of(settings, ids) for ids in rows]
    # few shapes: neighbours are about equally long; the same batches whatever is there already, for the draws' sake
    order = sorted((number for number, ids in enumerate(rows) if ids), key=lambda number: len(rows[number]))
    size = partitioning.places(section.batch_size, session.mesh)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    batches = [batch for batch in batches if any(store.get(keys[number]) is None for number in batch)]
    for batch in progress(batches, f"answers of {subject.name}", enabled=config.logging.progress):
        session.interrupt.poll("generating answers")
        found = generate(
            subject.model,
            subject.variables,
            [rows[number] for number in [*batch, *[batch[0]] * (size - len(batch))]],
            max_new_tokens=section.max_new_tokens,
            eos_ids=ends,
            temperature=section.judge.temperature,
            seed=section.seed + batch[0],
        )
        for number, new in zip(batch, found, strict=False):
            text = tokenizer.decode(new, skip_special_tokens=True).strip()
            unfinished = len(new) >= section.max_new_tokens
            store.add(keys[number], model=subject.name, prompt=prompts[number].id, answer=text, unfinished=unfinished)
    texts: list[str | None] = []
    for key, ids in zip(keys, rows, strict=True):
        record = store.get(key) if ids else None
        texts.append(None if record is None else str(record["answer"]))
    return texts


def from_file(path: str, prompts: Sequence[Asked]) -> list[str | None]:
    """Answers of a .jsonl: `{"id" or "prompt", "response"[, "finish"]}`; None for a prompt that it does not answer.

    A response that `finish` says was filtered, failed, or never asked for is none.

    Raises: DataError for a record that is no answer, or a file that answers none of the prompts.
    """
    found: dict[str, str] = {}
    for row in read_file(Path(path).expanduser(), path):
        record = row.value
        if isinstance(record, Unusable) or not isinstance(record, Mapping):
            raise DataError(f"{path}:{row.place}: not an object with 'response' and 'id' or 'prompt'; mend the record")
        name, answer = record.get("id", record.get("prompt")), record.get("response", record.get("answer"))
        if name is None or not isinstance(answer, str):
            raise DataError(f"{path}:{row.place}: needs text in 'response', and 'id' or 'prompt'; mend the record")
        if record.get("finish", "stop") not in NONE:
            found[str(name)] = answer
    texts = [found.get(prompt.id, found.get(prompt.text)) for prompt in prompts]
    if all(text is None for text in texts):
        raise DataError(f"{path}: answers none of the {len(prompts)} prompts; ids or prompts must be the same")
    return texts
