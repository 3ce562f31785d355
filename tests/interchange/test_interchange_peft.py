"""Adapters out to the `peft` library and in from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import ALL, BASE, FAMILIES, assert_trees_equal, random_adapter, random_params

from tisdpo_jax.errors import CheckpointError, MissingKeyError, ShapeMismatchError, UnexpectedKeyError
from tisdpo_jax.interchange import load_params, load_peft, save_huggingface, save_peft
from tisdpo_jax.models import ComputeConfig, Model, logits, merge
from tisdpo_jax.partitioning import make_mesh, param_shardings
from tisdpo_jax.types import Params

TOKENS = np.random.default_rng(3).integers(0, 96, (2, 12))


def adapted(lora: Params, scale: float, start: Params | None = None) -> np.ndarray:
    params = random_params(BASE) if start is None else merge(random_params(BASE), start, -1.0)
    params = merge(params, lora, scale)  # the same as beside them, and one program for all adapters
    return np.asarray(jax.jit(logits, static_argnums=0)(Model(BASE), {"params": params}, TOKENS))


def beside(lora: Params, scale: float) -> np.ndarray:
    model = Model(BASE, ComputeConfig(lora_scale=scale))
    return np.asarray(jax.jit(logits, static_argnums=0)(model, {"params": random_params(BASE), "lora": lora}, TOKENS))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    save_peft(tmp_path / "adapter", random_adapter(), BASE, rank=3, alpha=6.0, base_model="base")
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", [ALL, "attention/(q|v)", "mlp/down"])
def test_round_trip_is_bit_exact(tmp_path: Path, targets: str) -> None:
    lora = random_adapter(targets)
    save_peft(tmp_path / "adapter", lora, BASE, rank=3, alpha=12.0, base_model="base")
    back, scale, _ = load_peft(tmp_path / "adapter", BASE)
    assert scale == 4.0
    assert_trees_equal(back, lora)


def test_any_mesh_reads_and_writes_the_same(tmp_path: Path, adapter: Path) -> None:
    lora = random_adapter()
    shardings = param_shardings(jax.eval_shape(lambda: lora), make_mesh(2, 2, 2))
    sharded, *_ = load_peft(adapter, BASE, shardings=shardings)
    assert_trees_equal(sharded, lora)
    save_peft(tmp_path / "again", sharded, BASE, rank=3, alpha=6.0, base_model="base")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (adapter / file).read_bytes()


def test_merged_equals_adapted() -> None:
    lora = random_adapter()
    np.testing.assert_allclose(adapted(lora, 2.0), beside(lora, 2.0), atol=1e-4, rtol=0)


def test_rank_that_is_not_the_trees_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 4"):
        save_peft(tmp_path / "adapter", random_adapter(), BASE, rank=4, alpha=1.0, base_model="base")


OF_PEFT = "ignore:.*is_gradient_checkpointing.*:FutureWarning"  # peft asks transformers by an old name


@pytest.mark.filterwarnings(OF_PEFT)
@pytest.mark.parametrize("targets", [ALL, "attention/(q|v)"])
def test_peft_loads_our_adapter(tmp_path: Path, targets: str) -> None:
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    lora = random_adapter(targets)
    save_huggingface(tmp_path / "base", random_params(BASE), BASE)
    save_peft(tmp_path / "adapter", lora, BASE, rank=3, alpha=7.5, base_model=str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = np.asarray(model(torch.from_numpy(TOKENS)).logits)
    np.testing.assert_allclose(adapted(lora, 2.5), expected, atol=1e-4, rtol=0)
    with torch.no_grad(), model.disable_adapter():
        assert np.abs(np.asarray(model(torch.from_numpy(TOKENS)).logits) - expected).max() > 0.1

    auto = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(np.asarray(auto(torch.from_numpy(TOKENS)).logits), expected, atol=1e-5, rtol=0)


# what a LoraConfig can say about what is computed, and what is supported of it
OF_PEFTS_KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*\.down_proj": 5},
        "alpha_pattern": {"model.layers.1.self_attn.q_proj": 3, "down_proj": 1},
        "use_rslora": True,
    },
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "one layer": {"layers_to_transform": 1},
    "regex": {"target_modules": r".*\.[12]\..*(q_proj|up_proj)"},
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.1.mlp.up_proj"]},
    "excluded": {"exclude_modules": r".*layers\.0\..*"},
    "pissa": {"init_lora_weights": "pissa", "lora_alpha": 10},
    "olora": {"init_lora_weights": "olora", "rank_pattern": {"down_proj": 2}},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.filterwarnings(OF_PEFT)
@pytest.mark.parametrize("kind", OF_PEFTS_KINDS)
def test_we_load_pefts_adapter(tmp_path: Path, kind: str) -> None:
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    save_huggingface(tmp_path / "base", random_params(BASE), BASE)

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)

    torch.manual_seed(0)
    fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(base(), peft.LoraConfig(**{**fields, **OF_PEFTS_KINDS[kind]}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    lora, scale, start = load_peft(tmp_path / "adapter", BASE, base=tmp_path / "base")
    assert (start is not None) == (kind in ("pissa", "olora"))
    with torch.no_grad():
        expected = np.asarray(model(torch.from_numpy(TOKENS)).logits)
    np.testing.assert_allclose(adapted(lora, scale, start), expected, atol=1e-4, rtol=0)
    assert np.abs(adapted(random_adapter(), 0.0) - expected).max() > 0.1


def test_untrained_pissa_adapter_is_the_base(tmp_path: Path, adapter: Path) -> None:
    """Its product is what the base is relieved of; where the file has no tensors, the base stays whole."""
    from safetensors.numpy import save_file

    save_huggingface(tmp_path / "base", random_params(BASE), BASE)
    describe(adapter, init_lora_weights="pissa", r=2, lora_alpha=8)
    weight = np.asarray(random_params(BASE)["layers"]["mlp"]["up"]["kernel"][1]).T
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(values[:2] / 4.0)
    stem = "base_model.model.model.layers.1.mlp.up_proj"
    tensors = {"lora_A": root[:, None] * right[:2], "lora_B": np.ascontiguousarray(left[:, :2] * root)}
    save_file(
        {f"{stem}.{name}.weight": value for name, value in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    lora, scale, start = load_peft(adapter, BASE, base=tmp_path / "base")
    assert scale == 4.0 and start is not None
    np.testing.assert_allclose(adapted(lora, scale, start), adapted(random_adapter(), 0.0), atol=1e-4, rtol=0)
    assert np.abs(adapted(lora, scale) - adapted(random_adapter(), 0.0)).max() > 0.1
    with pytest.raises(CheckpointError, match=r"init_lora_weights is 'pissa'.*name the base model"):
        load_peft(adapter, BASE)


def describe(adapter: Path, **fields: Any) -> None:
    """Writes `fields` into adapter_config.json."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("use_dora", True),
        ("lora_bias", True),
        ("use_qalora", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["mlp.experts"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [5, 6]),
        ("megatron_config", {"a": 1}),
        ("kasa_config", {}),
        ("use_a_field_of_next_year", True),
        ("next_years_number", 16),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "next_years"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj(": 4}),
        ("alpha_pattern", {"q_proj": None}),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", "(q_proj"),
        ("layers_to_transform", ["0"]),
        ("r", None),
        ("r", True),
        ("lora_alpha", "16"),
    ],
)
def test_adapters_of_other_kinds_are_refused(adapter: Path, field: str, value: Any) -> None:
    describe(adapter, **{field: value})
    with pytest.raises(CheckpointError, match=field) as caught:
        load_peft(adapter, BASE)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_fields_that_change_nothing_or_are_off_pass(adapter: Path) -> None:
    """Those of peft today, and those that it may add, as long as they are switched off."""
    harmless = {"peft_version": "0.99", "lora_dropout": 0.1, "inference_mode": False, "megatron_core": "megatron.core"}
    off = {"use_dora": False, "bias": "none", "modules_to_save": None, "next_years": None, "next_years_too": False}
    described = {
        "qalora_group_size": 16,
        "eva_config": None,
        "loftq_config": {},
        "runtime_config": {},
        "revision": "main",
    }
    describe(adapter, **harmless, **off, **described, init_lora_weights="gaussian", target_modules="all-linear")
    lora, scale, start = load_peft(adapter, BASE)
    assert scale == 2.0 and start is None
    assert_trees_equal(lora, random_adapter())


def test_every_field_of_peft_is_decided() -> None:
    """A new one of peft's defaults may be on: then it belongs into one of the lists."""
    peft = pytest.importorskip("peft")
    from tisdpo_jax.interchange._adapter_config import _NO_EFFECT, _OFF, _OFF_TOO, _READ

    defaults = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=str))
    undecided = {
        field: value
        for field, value in defaults.items()
        if field not in _READ | _NO_EFFECT and value not in (*_OFF, *_OFF_TOO.get(field, ()))
    }
    assert not undecided


def test_adapters_that_do_not_fit(adapter: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def after(change: Callable[[dict[str, np.ndarray]], object], kind: type[Exception], message: str) -> None:
        changed = dict(tensors)
        change(changed)
        save_file(changed, file)
        with pytest.raises(kind, match=message):
            load_peft(adapter, BASE)

    after(lambda t: t.pop(name), MissingKeyError, "layers.1.mlp.up_proj")
    after(lambda t: t.update({name: np.zeros((3, 3), np.float32)}), ShapeMismatchError, "layers.1.mlp.up_proj")
    after(
        lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32), np.float32)}),
        UnexpectedKeyError,
        "lm_head",
    )
    after(lambda t: t.update({name: np.full_like(t[name], np.nan)}), CheckpointError, "up_proj.*holds NaN")
    after(lambda t: t.clear(), MissingKeyError, "holds no tensors")
    # a tensor in the file that the config leaves out would not be read by peft
    describe(adapter, layers_to_transform=[0, 2])
    after(lambda t: None, UnexpectedKeyError, r"layers\.1.*layers_to_transform")
    # layers without tensors stay as they are, unless peft would have put random numbers there
    describe(adapter, layers_to_transform=None)
    of_layer_1 = [one for one in tensors if ".layers.1." in one]
    save_file({one: value for one, value in tensors.items() if one not in of_layer_1}, file)
    lora = load_peft(adapter, BASE).lora
    assert all(not np.asarray(leaf)[1].any() and np.asarray(leaf)[[0, 2]].all() for leaf in jax.tree.leaves(lora))
    describe(adapter, init_lora_weights=False)
    after(lambda t: [t.pop(one) for one in of_layer_1], MissingKeyError, r"layers\.1\..*random numbers")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_peft(adapter, BASE)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        load_peft(adapter.parent, BASE)


def test_an_adapter_directory_is_no_base_model(adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="name the directory of its base model"):
        load_params(adapter, FAMILIES["llama3"], dtype=jnp.float32)
