"""Names that the examples in docstrings find without importing them."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _torch_in_docstrings(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """Settings are read without torch, and their examples are about tensors."""
    if request.node.name.startswith("bitsback.data.settings"):
        import torch

        doctest_namespace["torch"] = torch
