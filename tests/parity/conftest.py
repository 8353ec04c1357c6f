"""The small network with the recorded weights, run once a case."""

import pytest
from fixtures.recorded import Recording
from fixtures.stages import remembering


@pytest.fixture(scope="session")
def recording():
    return Recording.load()


@pytest.fixture(scope="session")
def recorded_model(recording):
    return recording.build_model()


@pytest.fixture(scope="session")
def outputs(recording, recorded_model):
    return remembering(recording, recorded_model)
