"""Plans are made from measurements of the machine: here kept apart from the user's, one thread, one seed."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def machine_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSKD_CACHE", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
