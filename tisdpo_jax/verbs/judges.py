"""The judges that a configuration can name."""

from __future__ import annotations

import functools
from pathlib import Path

from tisdpo_jax import interchange, judging, partitioning
from tisdpo_jax.artifacts import digest
from tisdpo_jax.data import open_template, tokenizer_identity
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.judging import RewardModel, ScoringJudge
from tisdpo_jax.models import Model
from tisdpo_jax.stages import Session, models

JUDGEMENTS = "judgements.jsonl"


def open_scorer(session: Session) -> ScoringJudge:
    """The judge that `evaluation.judge.by` names, of those that give scores. Raises: ConfigError where it is none."""
    by = session.config.evaluation.judge.by
    if by == "refusal":
        return ScoringJudge(by, by, judging.by_rule(judging.refusal_score))
    if by == "sentiment":
        judging.sentiment_score("", "")  # says what to install
        return ScoringJudge(by, by, judging.by_rule(judging.sentiment_score))
    if Path(by).expanduser().is_dir():
        return _reward_model(session, by)
    if ":" in by and "/" not in by:
        function, source = judging.load_function(by)
        identity = f"{by} {digest(source)}"
        return ScoringJudge(identity, identity, judging.by_rule(function))
    raise ConfigError(
        f"evaluation.judge.by is {by!r}; it must be sentiment, refusal, module:function, the directory of a reward "
        "model, or an address that begins with http:// or https://"
    )


def _reward_model(session: Session, path: str) -> ScoringJudge:
    def placed(shapes: object) -> object:
        return partitioning.param_shardings(shapes, session.mesh)  # type: ignore[arg-type]  # a tree of shapes

    config, dtype = session.config, models.whole_dtype(session)
    transformer, params, head = interchange.load_reward_model(path, dtype=dtype, shardings=placed)
    tokenizer = interchange.load_tokenizer(path)
    template = open_template(config.data.template, tokenizer)
    judge = RewardModel(Model(transformer, session.model.compute), params, head, tokenizer, template)
    values = [models.identify(tree) for tree in (params, {"head": head})]
    identity = [*values, repr(transformer), config.model.dtype, tokenizer_identity(tokenizer), template.identity]
    size, longest = config.evaluation.batch_size, transformer.max_positions
    score = functools.partial(judging.by_reward_model, judge, batch_size=size, max_length=longest)
    return ScoringJudge(path, identity, score)
