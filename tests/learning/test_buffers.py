import pytest
import torch

from segsweep.learning.buffers import empty, stacked


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_buffer_has_the_shape_type_and_device_asked_for(device, dtype):
    buffer = empty((2, 3, 4), dtype=dtype, device=torch.device(device))
    assert (buffer.shape, buffer.dtype, buffer.device.type) == ((2, 3, 4), dtype, device)


def test_stacking_converts_the_type():
    parts = [torch.full((2, 3), value, dtype=torch.uint8) for value in (1, 255)]
    result = stacked(parts, dtype=torch.int64)
    assert torch.equal(result, torch.stack(parts).long())
