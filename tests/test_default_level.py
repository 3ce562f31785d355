"""What is claimed bit for bit holds as users compile too: the fast tests compile without XLA's optimisation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = {
    "a resumed run is the run that was never stopped": ["recipes/test_resume.py"],
    "gradients of the working copy are those of the parameters": ["training/test_step_laws.py", "-k", "working_copy"],
    "pairs of a row do not see each other": ["scoring/test_packed_scores.py", "-k", "tokens_change or a_token"],
    "policy and reference agree": ["scoring/test_scoring_text.py", "-k", "same_model or reference_is_the_base"],
    "a sample belongs to itself": ["sampling/test_sampling.py"],
    "a stored tree comes back": ["test_checkpoint.py", "-k", "fingerprint or relative"],
}


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS)
def test_at_the_default_level(claim: str) -> None:
    file, *which = CLAIMS[claim]
    flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=3"]
    # the generator of fused loops that users have; a version that does not know the flag has no other
    flags += ["--xla_cpu_use_fusion_emitters=true"] if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"] else []
    env = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    line = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/{file}", *which]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
