"""The configuration of the testbed: a world whose token rewards are known, and what is compared in it."""

from __future__ import annotations

import dataclasses
import difflib

from tisdpo_jax.config import OptimizerSection
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.options import option


@dataclasses.dataclass(frozen=True)
class WorldSection:
    topics: int = option(8, "topics; which words are good or bad depends on the topic of the prompt")
    words: int = option(32, "words of the language")
    key_share: float = option(0.3, "share of a topic's words with a reward: half of them good, half bad")
    reward: float = option(1.0, "mean size of the reward of a key word")
    persistence: float = option(
        0.0, "probability that a token is as good or bad as the one before; near 1 rewards hardly differ in a response"
    )
    correlation: float = option(0.0, "of likelihood and reward: log of what the odds of good words are multiplied by")
    steer: float = option(1.0, "the same behind a steering token; what (P) builds on")
    shortest: int = option(6, "words of the shortest response")
    longest: int = option(12, "words of the longest response")
    context: int = option(2, "words of a prompt besides its topic")
    label_noise: float = option(0.0, "share of labels that are turned round")


@dataclasses.dataclass(frozen=True)
class TinyModelSection:
    width: int = option(32, "hidden size")
    layers: int = option(2, "layers")
    heads: int = option(4, "attention heads")
    corpus: int = option(8192, "texts to pretrain on")
    steps: int = option(400, "pretraining steps")
    batch_size: int = option(128, "texts a pretraining step")


@dataclasses.dataclass(frozen=True)
class TestbedTraining:
    __test__ = False  # pytest takes what is called Test for a test

    pairs: int = option(512, "training pairs of a seed")
    batch_size: int = option(16, "pairs an optimizer step")
    epochs: float = option(1.0, "passes over the pairs")
    rates: str = option("1e-4,3e-4,1e-3,3e-3,1e-2", "learning rates that every method is tried at, commas between")
    beta: float = option(0.1, "beta of every loss, of the contrastive DPO runs too")
    optimizer: OptimizerSection = option(
        OptimizerSection(learning_rate=1.0, warmup_steps=4), "optimizer; its learning rate multiplies those of `rates`"
    )


@dataclasses.dataclass(frozen=True)
class Testbed:
    __test__ = False

    run_dir: str = option("runs/testbed", "directory of the results; what is there is not computed again")
    seeds: int = option(8, "seeds that are reported")
    tuning_seeds: int = option(4, "further seeds, on which learning rates are chosen")
    first_seed: int = option(0, "the first of them")
    prompts: int = option(256, "held-out prompts that every policy answers")
    cuts: int = option(4, "points of the learning curve")
    tables: str = option(
        "all", "what is compared, commas between: methods, ablations, data, noise, spread, likelihood; or all"
    )
    methods: str = option("all", "rows of the table of methods, commas between, or all; DPO is always among them")
    workers: int = option(2, "settings or methods that are computed at the same time; one keeps about one core busy")
    world: WorldSection = option(WorldSection(), "the language")
    model: TinyModelSection = option(TinyModelSection(), "the model, and its pretraining")
    training: TestbedTraining = option(TestbedTraining(), "training of policies and contrastive models")


TABLES = ("methods", "ablations", "data", "noise", "spread", "likelihood")


def names(text: str, known: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The parts of a list with commas; `all` is all that are known. Raises: ConfigError for one that is not."""
    if text.strip() == "all":
        return known
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{name}: unknown {part!r}; {hint}")
    return found


def rates(text: str) -> tuple[float, ...]:
    """Learning rates of a list with commas, ascending. Raises: ConfigError."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise ConfigError(f"training.rates is {text!r}; it must be numbers with commas between") from None
    if not found or found[0] <= 0:
        raise ConfigError(f"training.rates is {text!r}; it needs numbers above 0")
    return found


def check(config: Testbed) -> Testbed:
    """The same configuration. Raises: ConfigError for values that make no sense, by field."""
    if "://" in config.run_dir:
        raise ConfigError(f"run_dir is {config.run_dir}; it must be a directory of this machine")
    world, model, training = config.world, config.model, config.training
    at_least = {
        "seeds": (config.seeds, 2),
        "tuning_seeds": (config.tuning_seeds, 1),
        "first_seed": (config.first_seed, 0),
        "prompts": (config.prompts, 1),
        "cuts": (config.cuts, 1),
        "workers": (config.workers, 1),
        "world.topics": (world.topics, 1),
        "world.words": (world.words, 4),
        "world.shortest": (world.shortest, 1),
        "world.longest": (world.longest, world.shortest),
        "world.context": (world.context, 0),
        "world.reward": (world.reward, 0),
        "model.width": (model.width, 2 * model.heads),
        "model.layers": (model.layers, 1),
        "model.heads": (model.heads, 1),
        "model.corpus": (model.corpus, model.batch_size),
        "model.steps": (model.steps, 1),
        "model.batch_size": (model.batch_size, 1),
        "training.pairs": (training.pairs, 1),
        "training.batch_size": (training.batch_size, 1),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    shares = {
        "world.key_share": (world.key_share, 1.0),
        "world.persistence": (world.persistence, 0.999),
        "world.label_noise": (world.label_noise, 0.5),
    }
    for name, (share, highest) in shares.items():
        if not 0 <= share <= highest:
            raise ConfigError(f"{name} is {share}; it must be between 0 and {highest}")
    if model.width % (2 * model.heads):
        raise ConfigError(f"model.width {model.width} must be a multiple of twice model.heads {model.heads}")
    for name in ("training.epochs", "training.beta"):
        if getattr(training, name.rpartition(".")[2]) <= 0:
            raise ConfigError(f"{name} must be above 0")
    names(config.tables, TABLES, "tables")
    rates(training.rates)
    return config
