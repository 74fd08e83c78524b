"""Settings of every test: one thread, a fixed seed, no deadline for a busy machine."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("bitsback", deadline=None, derandomize=True)
settings.load_profile("bitsback")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
