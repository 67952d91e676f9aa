import re
import tomllib
from pathlib import Path

import pytest
from asymcir_edge import cli

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    "coremltools": "coremltools",
    "faiss-cpu": "faiss",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "open_clip_torch": "open_clip",
    "prometheus-client": "prometheus_client",
    "resvg-py": "resvg_py",
    "scikit-learn": "sklearn",
}
HANDLED = {"braceexpand"}  # of two extras; the smaller one is named


@pytest.mark.parametrize("name", ["", *PROJECT["optional-dependencies"]])
def test_an_older_python_is_refused_before_anything_is_looked_for(name: str) -> None:
    """Without the marker, pip 23.0 looks for releases of each first; see the comment in pyproject.toml."""
    required = PROJECT["requires-python"].removeprefix(">=")
    marker = f"; python_version >= '{required}'"
    needs = PROJECT["optional-dependencies"][name] if name else PROJECT["dependencies"]
    assert [one for one in needs if not one.endswith(marker)] == []


@pytest.mark.parametrize("extra", ["server", "training", "export"])
def test_the_command_knows_the_extra_of_every_module(extra: str) -> None:
    for need in PROJECT["optional-dependencies"][extra]:
        distribution = re.split(r"[\[><=~;]", need)[0]
        if distribution == "asymcir" or distribution in HANDLED:
            continue
        module = MODULES.get(distribution, distribution)
        assert cli._EXTRA_OF_MODULE.get(module) == extra, module
