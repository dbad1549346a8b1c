"""Devices as users name them."""

from __future__ import annotations

import pytest

from mmformer.errors import InputError
from mmformer.scaling.devices import read_devices


def test_a_number_and_a_name() -> None:
    several = read_devices("64xh200")
    assert (several.number, several.device.name, str(several)) == (64, "H200", "64xH200")
    assert several.device.peak("bf16-mixed") == 989e12
    assert several.device.peak("32-true") == 67e12
    assert read_devices("A100-40GB").number == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [("8xH20", "there is no device 'H20'. Did you mean 'h200'?"), ("0xH100", "such as 8xH100"), ("8 x", "8xH100")],
)
def test_what_is_no_device(text: str, told: str) -> None:
    with pytest.raises(InputError, match=r".*") as error:
        read_devices(text)
    assert told in str(error.value)
