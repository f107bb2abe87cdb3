"""Which platform is chosen, and how many slots its devices hold."""

import pytest
from roost.engine.devices.platform import (
    CPU,
    CPU_MESH,
    CPU_NATIVE,
    GPU,
    TPU,
    affordable_slots,
    choose_platform,
    gpu_platform,
    numerics,
)
from roost.engine.types.config import ONE_DEVICE, MeshShape
from roost.engine.types.errors import ConfigError
from roost.kernels import XLA, GpuSizes, native


def test_this_machine_is_a_cpu() -> None:
    assert choose_platform(ONE_DEVICE) == (CPU_NATIVE if native.is_available() else CPU)
    assert choose_platform(MeshShape(2, 1)) == CPU_MESH, "native kernels would each take all cores"


def test_accelerators_run_all_layers_in_one_step() -> None:
    for platform in (GPU, TPU, CPU_MESH):
        assert (platform.sizes.draft_rows, platform.layers_per_slice) == ((), None)
    assert (GPU.sizes.decode_rows, CPU_MESH.sizes.decode_rows) == ((), ()), "one decode step of all slots"


@pytest.mark.parametrize(
    ("capability", "kernels"), [((7, 5), "xla"), ((8, 0), "gpu"), ((8, 9), "gpu"), ((10, 0), "gpu")]
)
def test_nvidia_gpus_get_kernels_that_triton_compiles(capability: tuple[int, int], kernels: str) -> None:
    platform = gpu_platform(capability, GpuSizes(101_376, 58))
    assert platform.kernels.name == kernels
    assert bool(platform.sizes.decode_rows) == (platform.kernels != XLA), "XLA would copy the first slots' rings"


def test_slots_that_do_not_fit_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"a slot takes 1,048,576\.00 TiB"):
        affordable_slots(2**60, 0, CPU)


def test_weights_are_taken_into_account_before_they_are_loaded() -> None:
    assert affordable_slots(2**10, 0, CPU) == CPU.max_slots
    with pytest.raises(ConfigError, match="memory left for slots is 0 B"):
        affordable_slots(2**10, 2**60, CPU)


def test_bits_of_states_are_those_of_the_processor_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {numerics(), numerics()}
    for name, value in (("instruction_sets", ("avx2",)), ("chosen_products", "others")):
        monkeypatch.setattr(native, name, lambda value=value: value)
        found.add(numerics())
    assert len(found) == 3
