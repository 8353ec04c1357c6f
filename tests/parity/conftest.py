"""The small network with the recorded weights, run once per case.

`OFA_FAST=0` switches fast CPU code off for these tests, so that plain torch computes everything.
"""

import os

import pytest
from fixtures.recorded import Recording
from fixtures.stages import remembering


@pytest.fixture(scope="session", autouse=True)
def fast_code():
    from ofa_hf import fast_ofa

    fast_ofa.ENABLED = os.environ.get("OFA_FAST") != "0"
    yield
    fast_ofa.ENABLED = True


@pytest.fixture(scope="session")
def recording():
    return Recording.load()


@pytest.fixture(scope="session")
def recorded_model(recording):
    return recording.build_model()


@pytest.fixture(scope="session")
def outputs(recording, recorded_model):
    return remembering(recording, recorded_model)
