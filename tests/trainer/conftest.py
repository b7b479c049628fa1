from collections.abc import Iterator

import pytest
import small_runs

from trainer.presets import Preset


@pytest.fixture(scope="session")
def small_preset() -> Preset:
    return small_runs.preset()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[small_runs.Zygote]:
    zygote = small_runs.Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()
