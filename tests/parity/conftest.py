"""What all parity tests share: threads for small arrays, and the table of frequencies of the processor that recorded."""

from collections.abc import Iterator

import pytest
import torch

from tests.parity.frequencies import recorded_frequencies


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _recorded_frequencies() -> Iterator[None]:
    with recorded_frequencies():
        yield
