"""TRL's half of `cpu.py` and `gpu.py`: its DPOTrainer on our encoded pairs, one optimizer step at a time.

What runs is TRL's own: its collator, `training_step` (forward, reference forward, backward, metrics), clipping, its
default AdamW, the scheduler. Only the loop around them is ours, so that steps can be taken in turn with others.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def pretrained(model: Path) -> tuple[Any, Any]:
    """The policy and the tokenizer of a directory."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), tokenizer


def random_weights(config: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """A policy of a shape (the fields of its config.json), and a tokenizer for the one text that the trainer wants."""
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="c", eos_token="c", unk_token="a")
    policy = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    return policy, tokenizer


class TrlSide:
    """One trainer that takes steps with its live reference, or with reference scores made before.

    The policy goes on from step to step; both kinds of step train the same one.
    """

    def __init__(
        self,
        policy: Any,
        tokenizer: Any,
        *,
        max_length: int,
        learning_rate: float,
        checkpointing: bool,
        gpu: bool = False,
    ) -> None:
        arguments = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            max_length=max_length,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            gradient_checkpointing=checkpointing,
            bf16=gpu,  # products in bfloat16, as ours
            use_cpu=not gpu,
            report_to=[],
            disable_tqdm=True,
        )
        # The trainer wants texts to prepare; the pairs that count come to `step` as tokens.
        text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
        self.trainer = DPOTrainer(
            policy, copy.deepcopy(policy), args=arguments, train_dataset=text, processing_class=tokenizer
        )
        self.trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        self.trainer.current_gradient_accumulation_steps = 1  # what its own loop sets before a step
        self.model = self.trainer.model

    def examples(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Examples that bring the reference's log-likelihoods, as TRL precomputes them."""
        examples = self.examples(pairs)
        chosen, rejected = self.trainer.compute_ref_log_probs(
            self.trainer.ref_model, self.trainer.data_collator(examples)
        )
        scores = zip(examples, chosen.tolist(), rejected.tolist(), strict=True)
        return [example | {"ref_chosen_logps": c, "ref_rejected_logps": r} for example, c, r in scores]

    def step(self, examples: list[dict[str, Any]]) -> float:
        """One optimizer step, collation included; its seconds."""
        trainer = self.trainer
        began = time.perf_counter()
        trainer.precompute_ref_logps = "ref_chosen_logps" in examples[0]
        self.model.train()
        inputs = trainer.data_collator(examples)
        trainer.training_step(self.model, inputs)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def metric(self, name: str) -> float:
        """What TRL logged last under this name."""
        return float(self.trainer._metrics["train"][name][-1])
