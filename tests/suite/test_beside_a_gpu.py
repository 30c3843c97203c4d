"""The tests pass on a machine with a GPU, where Lightning warns of every training on the CPU."""

import pytest
from support import bit_identity

pytestmark = pytest.mark.filterwarnings(*bit_identity.IGNORED_WARNINGS)


class PresentGPU:
    """What Lightning asks whether there is one."""

    @staticmethod
    def is_available():
        return True


@pytest.fixture(autouse=True)
def a_gpu_is_there(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.trainer.setup.CUDAAccelerator", PresentGPU)


def test_lightning_warns_of_a_gpu_that_is_not_used(tmp_path):
    with pytest.warns(UserWarning, match="GPU available but not used"):
        bit_identity.train(tmp_path, [], steps=1)


def test_no_test_fails_because_of_that(tmp_path):
    monitors = bit_identity.monitors()
    bit_identity.train(tmp_path, monitors, steps=1)
    assert [len(monitor.history) for monitor in monitors] == [1, 1, 1]
