"""Metadata, dependencies and the `tisdpo` command. Settings of tools are in pyproject.toml.

Only floors that are known to matter: which versions were tried together is in constraints/, one file for
each of the three worlds (see CONTRIBUTING.md). `pip install tisdpo_jax` alone leaves a
preinstalled jax, as on Colab, as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    text = (HERE / "tisdpo_jax" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('tisdpo_jax/_version.py holds no line `__version__ = "..."`')
    return match.group(1)


GGUF = ["gguf"]
HF_DATA = ["datasets"]
TENSORBOARD = ["tensorboardX"]
JUDGES = ["vaderSentiment"]

setup(
    name="tisdpo_jax",
    version=version(),
    description="Token-level importance-weighted preference optimisation (TIS-DPO) and DLMA in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "alignment", "preference optimization", "dpo", "tis-dpo", "dlma", "llama"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["tisdpo_jax", "tisdpo_jax.*"]),
    package_data={
        "tisdpo_jax": [
            "py.typed",
            "data/demo/*.jsonl",
            "data/demo/README.md",
            "planning/*.json",
            "reporting/templates/*",
        ]
    },
    entry_points={"console_scripts": ["tisdpo = tisdpo_jax.cli:command"]},
    install_requires=[
        "array-record",
        "flax>=0.11.2",
        # as huggingface_hub asks for it
        "httpx2>=2,<3",
        # fetches models of the hub, and says how tensors are cut into shards
        "huggingface_hub",
        # importlib_resources is imported by tensorflow-datasets, which does not ask for it.
        "importlib_resources",
        "jax>=0.7.2",
        # jinja2 renders chat templates and pages; transformers does not ask for it.
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12",
        "pyyaml",
        "safetensors",
        "scipy",
        "tensorflow-datasets>=4.9",
        "tqdm",
        "transformers>=5,<6",
        # The default demo reads a GGUF file, so this is no option; the extra below stays a valid name.
        *GGUF,
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "hf-data": HF_DATA,
        "gguf": GGUF,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb"],
        "judges": JUDGES,
        "dev": [
            "build",
            "hypothesis",
            "mypy",
            "pytest>=8",
            "pytest-xdist",
            "ruff",
            "types-PyYAML",
            *HF_DATA,
            *TENSORBOARD,
            *JUDGES,
        ],
        # Comparison with PyTorch, in tests only; the tests that need it are skipped without it.
        "parity": ["torch", "accelerate", "peft", "trl"],
    },
)
