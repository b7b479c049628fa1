import pytest
import small_runs

from trainer.presets import Preset


@pytest.fixture(scope="session")
def small_preset() -> Preset:
    return small_runs.preset()
