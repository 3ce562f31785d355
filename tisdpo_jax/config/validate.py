"""What single fields cannot say: ranges, and combinations that make no sense together."""

from __future__ import annotations

from collections.abc import Collection

from tisdpo_jax.config.fields import get
from tisdpo_jax.config.idle import idle
from tisdpo_jax.config.places import check_places, is_address
from tisdpo_jax.config.prompt_pairs import with_prompts
from tisdpo_jax.config.schema import Experiment, StageSection
from tisdpo_jax.errors import ConfigError


def validate(config: Experiment, *, trains: bool = True, verb: str = "", spared: Collection[str] = ()) -> Experiment:
    """Returns the configuration, with the prompts of `contrast.pair` and without `~` in its paths.

    Raises: ConfigError that names the field and the remedy.

    Args:
      trains: False is for what needs no training pairs: the evaluation of models that are there.
      verb: of the command line; without it, a value may be for any of them.
      spared: names of fields that may do nothing, because something else overrules the file that holds them.
    """
    config = with_prompts(check_places(config))
    _required(config, trains)
    _ranges(config)
    _combinations(config)
    for name, why in idle(config, verb).items():
        if name not in spared:
            value = get(config, name)
            _fail(f"{name} is {value!r} and does nothing: {why}; take it out")
    return config


def _fail(message: str) -> None:
    raise ConfigError(message)


def _required(config: Experiment, trains: bool) -> None:
    if not config.model.path:
        _fail("model.path is empty; name a Hugging Face directory, a .gguf file, or `demo`")
    if trains and config.dlma.rounds:
        if not config.sampling.prompts:
            _fail("sampling.prompts is empty; name a file of prompts, or `demo:prompts` (dlma.rounds asks for DLMA)")
        if config.data.train or config.data.eval:
            _fail("data.train and data.eval are files of pairs; DLMA makes its own (dlma.rounds), leave them empty")
    elif trains and not config.data.train:
        _fail("data.train is empty; name a file of pairs, `tfds:NAME`, `hf:NAME`, or `demo:train`")


def _ranges(config: Experiment) -> None:
    at_least = {
        "model.head_chunk": (config.model.head_chunk, 1),
        "lora.rank": (config.lora.rank, 0),
        "data.limit": (config.data.limit, 0),
        "data.eval_limit": (config.data.eval_limit, 0),
        "train.eval_every": (config.train.eval_every, 0),
        "train.checkpoint_every": (config.train.checkpoint_every, 1),
        "train.keep_checkpoints": (config.train.keep_checkpoints, 1),
        "train.max_skipped": (config.train.max_skipped, 1),
        "evaluation.batch_size": (config.evaluation.batch_size, 1),
        "evaluation.generate": (config.evaluation.generate, 0),
        "evaluation.max_new_tokens": (config.evaluation.max_new_tokens, 1),
        "evaluation.heat_maps": (config.evaluation.heat_maps, 0),
        "evaluation.resamples": (config.evaluation.resamples, 100),
        "evaluation.judge.limit": (config.evaluation.judge.limit, 0),
        "evaluation.judge.temperature": (config.evaluation.judge.temperature, 0),
        "evaluation.judge.tie_band": (config.evaluation.judge.tie_band, 0),
        "evaluation.judge.concurrency": (config.evaluation.judge.concurrency, 1),
        "evaluation.judge.retries": (config.evaluation.judge.retries, 0),
        "logging.every": (config.logging.every, 1),
        "loss.kl_coef": (config.loss.kl_coef, 0),
        "loss.alpha": (config.loss.alpha, 0),
        "loss.margin_coef": (config.loss.margin_coef, 0),
        "loss.desirable_weight": (config.loss.desirable_weight, 0),
        "loss.undesirable_weight": (config.loss.undesirable_weight, 0),
        "sampling.limit": (config.sampling.limit, 0),
        "sampling.samples": (config.sampling.samples, 1),
        "sampling.batch_size": (config.sampling.batch_size, 1),
        "sampling.max_new_tokens": (config.sampling.max_new_tokens, 1),
        "sampling.max_prompt": (config.sampling.max_prompt, 1),
        "sampling.temperature": (config.sampling.temperature, 0),
        "sampling.top_k": (config.sampling.top_k, 0),
        "sampling.concurrency": (config.sampling.concurrency, 1),
        "sampling.retries": (config.sampling.retries, 0),
        "dlma.rounds": (config.dlma.rounds, 0),
        "dlma.tie_band": (config.dlma.tie_band, 0),
    }
    for name, (value, lowest) in at_least.items():
        if value < lowest:
            _fail(f"{name} is {value}; it must be at least {lowest}")
    if config.weights.method == "binary" and not 0 < config.weights.top_percent < 100:
        _fail(
            f"weights.top_percent is {config.weights.top_percent:g}; it must be above 0 and below 100: "
            "all tokens would weigh the same (weights.method uniform does that)"
        )
    above_zero = {
        "lora.alpha": config.lora.alpha,
        "loss.beta": config.loss.beta,
        "contrast.beta": config.contrast.beta,
        "weights.scale": config.weights.scale,
        "weights.gamma": config.weights.gamma,
        "evaluation.judge.timeout": config.evaluation.judge.timeout,
        "sampling.timeout": config.sampling.timeout,
        "sampling.top_p": config.sampling.top_p,
    }
    for name, number in above_zero.items():
        if number <= 0:
            _fail(f"{name} is {number}; it must be above 0")
    shares = {
        "loss.label_smoothing": (config.loss.label_smoothing, 0.5),
        "data.max_rejected": (config.data.max_rejected, 1.0),
        "sampling.top_p": (config.sampling.top_p, 1.0),
        "sampling.min_p": (config.sampling.min_p, 1.0),
        "dlma.eval_fraction": (config.dlma.eval_fraction, 0.9),
    }
    for name, (share, highest) in shares.items():
        if not 0 <= share <= highest:
            _fail(f"{name} is {share}; it must be between 0 and {highest}")
    for name, section in (
        ("sft", config.sft),
        ("contrast.training", config.contrast.training),
        ("train", config.train),
    ):
        _stage(name, section)


def _stage(name: str, section: StageSection) -> None:
    if section.epochs < 0 or (section.epochs == 0 and name != "sft"):
        _fail(f"{name}.epochs is {section.epochs}; it must be above 0")
    if section.batch_size < 1 or section.micro_batches < 1 or section.batch_size % section.micro_batches:
        _fail(
            f"{name}.batch_size {section.batch_size} must be a positive multiple of "
            f"{name}.micro_batches {section.micro_batches}"
        )
    optimizer = section.optimizer
    if optimizer.learning_rate <= 0:
        _fail(f"{name}.optimizer.learning_rate is {optimizer.learning_rate}; it must be above 0")
    for field in ("warmup_steps", "clip_norm", "weight_decay"):
        if getattr(optimizer, field) < 0:
            _fail(f"{name}.optimizer.{field} is {getattr(optimizer, field)}; it must be at least 0")


def _combinations(config: Experiment) -> None:
    if config.model.attention == "cudnn" and config.data.packing != "none":
        _fail("model.attention cudnn takes no packed rows; set data.packing none, or model.attention xla")
    if config.data.eval and config.data.eval_fraction:
        _fail("data.eval and data.eval_fraction are both given; held-out pairs come from one of them")
    if config.weights.lower > config.weights.upper:
        _fail(f"weights.lower {config.weights.lower} is above weights.upper {config.weights.upper}")
    if config.loss.margin_lower > config.loss.margin_upper:
        _fail(f"loss.margin_lower {config.loss.margin_lower} is above loss.margin_upper {config.loss.margin_upper}")
    judge = config.evaluation.judge
    if is_address(judge.by) and not judge.endpoint_model:
        _fail("evaluation.judge.endpoint_model is empty; name the model to ask the endpoint for")
    contrast = config.contrast
    if contrast.construction == "prompts" and contrast.positive_prompt == contrast.negative_prompt:
        _fail("contrast.positive_prompt and contrast.negative_prompt are the same; every token would weigh the same")
    if config.loss.name in ("dlma", "dlma+tisdpo") and contrast.scores == "online" and contrast.construction != "none":
        _fail(
            f"loss.name {config.loss.name} takes the self-reward of whole pairs from cached scores; "
            "set contrast.scores to cached"
        )
    if config.sampling.engine == "http" and not (config.sampling.url and config.sampling.endpoint_model):
        _fail("sampling.engine http needs sampling.url (http://HOST:PORT/v1) and sampling.endpoint_model")
    if config.dlma.rounds:
        _dlma(config)


def _dlma(config: Experiment) -> None:
    if config.contrast.construction != "prompts":
        _fail(f"contrast.construction is {config.contrast.construction}; DLMA contrasts two prompts: set it to prompts")
    if config.contrast.scores != "cached":
        _fail("contrast.scores is online; DLMA chooses pairs by their scores: set it to cached")
    if config.loss.name == "sft" or config.sft.epochs:
        _fail("loss.name sft and sft.epochs need answers that somebody wrote; DLMA has none (dlma.rounds)")
    if config.dlma.rounds > 1 and config.sampling.engine != "local":
        _fail(
            f"dlma.rounds {config.dlma.rounds} with sampling.engine {config.sampling.engine}: from the second round on "
            "the trained policy answers, which that engine does not have; run one round, serve its export/, run again"
        )
    if 0 < config.dlma.length_ratio < 1:
        _fail(f"dlma.length_ratio is {config.dlma.length_ratio}; it must be at least 1, or 0 for no limit")
