"""The small network with the recorded weights, run once per case.

`OFA_DOOR=closed` runs these tests with the door to fast code closed, so that plain torch computes everything.
"""

import os

import pytest
from fixtures.recorded import Recording
from fixtures.stages import remembering


@pytest.fixture(scope="session", autouse=True)
def door():
    from ofa_hf import fast_ofa

    fast_ofa.IS_OPEN = os.environ.get("OFA_DOOR") != "closed"
    yield
    fast_ofa.IS_OPEN = True


@pytest.fixture(scope="session")
def recording():
    return Recording.load()


@pytest.fixture(scope="session")
def recorded_model(recording):
    return recording.build_model()


@pytest.fixture(scope="session")
def outputs(recording, recorded_model):
    return remembering(recording, recorded_model)
