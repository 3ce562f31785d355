"""The judges that a configuration can name, each behind what is already on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tisdpo_jax import interchange, judging, partitioning
from tisdpo_jax.chat import key_from
from tisdpo_jax.data import Prompt, open_template, tokenizer_identity
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.judging import JudgeEndpoint, Question, Reply, RewardModel, Score, Store, key_of
from tisdpo_jax.metrics import Outcomes
from tisdpo_jax.models import Model
from tisdpo_jax.stages import Session, models
from tisdpo_jax.training import Progress

log = logging.getLogger(__name__)

KEYS = ("TISDPO_JUDGE_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set

Scorer = Callable[[Store, str, Sequence[Prompt], Sequence[str | None]], list[float]]
"""(kept scores, model, prompts, answers) -> a score for each answer, nan where there is none."""


def open_scorer(session: Session) -> Scorer:
    """The judge that `evaluation.judge.by` names, of those that give scores. Raises: ConfigError where it is none."""
    by = session.config.evaluation.judge.by
    if by == "refusal":
        return _with(session, judging.refusal_score, by)
    if by == "sentiment":
        judging.sentiment_score("", "")  # says what to install
        return _with(session, judging.sentiment_score, by)
    if Path(by).expanduser().is_dir():
        return _reward_model(session, by)
    if ":" in by and "/" not in by:
        function = judging.load_function(by)
        return _with(session, function, f"{by} {key_of(judging.source_of(by))}")
    raise ConfigError(
        f"evaluation.judge.by is {by!r}; it must be sentiment, refusal, module:function, the directory of a reward "
        "model, or an address that begins with http:// or https://"
    )


def _with(session: Session, function: Score, identity: str) -> Scorer:
    def score(store: Store, name: str, prompts: Sequence[Prompt], texts: Sequence[str | None]) -> list[float]:
        found = []
        for prompt, text in zip(prompts, texts, strict=True):
            if text is None:
                found.append(math.nan)
                continue
            key = key_of(identity, prompt.text, text)
            record = store.get(key)
            if record is None:
                session.interrupt.poll("scoring answers")
                value = function(prompt.text, text)
                store.add(key, judge=identity, prompt=prompt.id, model=name, score=value)
            else:
                value = float(record["score"])
            found.append(value)
        return found

    return score


def _reward_model(session: Session, path: str) -> Scorer:
    config, section = session.config, session.config.evaluation
    dtype = models.whole_dtype(session)

    def placed(shapes: object) -> object:
        return partitioning.param_shardings(shapes, session.mesh)  # type: ignore[arg-type]  # a tree of shapes

    transformer, params, head = interchange.load_reward_model(path, dtype=dtype, shardings=placed)
    tokenizer = interchange.load_tokenizer(path)
    template = open_template(config.data.template, tokenizer)
    judge = RewardModel(Model(transformer, session.model.compute), params, head, tokenizer, template)
    values = [models.identify(tree) for tree in (params, {"head": head})]
    identity = [*values, repr(transformer), config.model.dtype, tokenizer_identity(tokenizer), template.identity]

    def score(store: Store, name: str, prompts: Sequence[Prompt], texts: Sequence[str | None]) -> list[float]:
        keys = [key_of(identity, prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]
        wanted = [number for number, key in enumerate(keys) if texts[number] is not None and store.get(key) is None]
        conversations = [(prompts[number].messages, texts[number] or "") for number in wanted]
        for place, value in judging.score_conversations(
            judge, conversations, batch_size=section.batch_size, max_length=transformer.max_positions
        ):
            session.interrupt.poll("scoring answers")
            shown = None if math.isnan(value) else value
            number = wanted[place]
            store.add(keys[number], judge=path, prompt=prompts[number].id, model=name, score=shown)
        records = [store.get(key) if text is not None else None for key, text in zip(keys, texts, strict=True)]
        return [math.nan if one is None or one["score"] is None else float(one["score"]) for one in records]

    return score


def endpoint_verdicts(
    session: Session,
    store: Store,
    pairs: Sequence[tuple[str, str]],
    prompts: Sequence[Prompt],
    texts: dict[str, list[str | None]],
) -> tuple[dict[tuple[str, str], Outcomes], dict[str, int]]:
    """Every two models on every prompt, in both orders; verdicts that are on disk are not asked for again.

    Equal answers are a tie that nobody is asked about.

    Returns: outcomes by pair, and how many questions have no verdict, by kind (`judging.UNDECIDED`).
    """
    section = session.config.evaluation.judge
    endpoint = JudgeEndpoint(
        url=section.by,
        model=section.endpoint_model,
        criterion=section.criterion,
        key=key_from(KEYS),
        timeout=section.timeout,
        retries=section.retries,
        concurrency=section.concurrency,
    )
    identity = [endpoint.url, endpoint.model, endpoint.criterion]
    questions: dict[str, Question] = {}
    told: dict[str, dict[str, str]] = {}
    witness: Question | None = None
    undecided = dict.fromkeys(judging.UNDECIDED, 0)

    def key(one: str, other: str, prompt: Prompt, first: str, second: str) -> str:
        return key_of(identity, prompt.id, prompt.text, one, other, first, second)

    for one, other in [order for pair in pairs for order in (pair, pair[::-1])]:
        for prompt, first, second in zip(prompts, texts[one], texts[other], strict=True):
            if first is None or second is None or first == second:
                continue
            name = key(one, other, prompt, first, second)
            question, record = Question(name, prompt.text, first, second), store.get(name)
            if record is not None:
                witness = witness if record["verdict"] in judging.UNDECIDED else question
            else:
                questions[name] = question
                told[name] = {"prompt": prompt.id, "first": one, "second": other}
    if questions:
        log.info("%d questions for %s, %d verdicts on disk", len(questions), endpoint.url, len(store))
    bar = Progress("judge", len(questions), done=0, enabled=session.config.logging.progress)

    def take(question: Question, reply: Reply) -> None:
        store.add(
            question.key,
            judge=f"{endpoint.model} at {endpoint.url}",
            **told[question.key],
            verdict=reply.verdict,
            tries=reply.tries,
            reply=reply.text,
            **({"reason": reply.reason} if reply.reason else {}),
        )
        bar.advance({})

    try:
        judging.ask_judge(
            endpoint, list(questions.values()), take, lambda: session.interrupt.poll("judging"), witness=witness
        )
    finally:
        bar.close()

    def verdict(one: str, other: str, number: int) -> str:
        first, second = texts[one][number], texts[other][number]
        if first is None or second is None:
            return judging.UNPARSABLE
        if first == second:
            return judging.TIE
        record = store.get(key(one, other, prompts[number], first, second))
        found = judging.UNPARSABLE if record is None else str(record["verdict"])
        if found in undecided:
            undecided[found] += 1
        return found

    found = {}
    for one, other in pairs:
        orders = [[verdict(*pair, number) for number in range(len(prompts))] for pair in ((one, other), (other, one))]
        found[one, other] = judging.outcomes_of_orders(*orders)
    return found, undecided
