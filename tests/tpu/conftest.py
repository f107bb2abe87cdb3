"""A TPU topology to compile for, on a machine without a TPU."""

import os

import pytest

os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # each of pytest's workers compiles
}

from jax.sharding import SingleDeviceSharding


@pytest.fixture(scope="session", params=["v5e:2x2", "v6e:2x2"])
def chip(request: pytest.FixtureRequest) -> SingleDeviceSharding:
    """Returns one chip of a host with four."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=request.param, chips_per_host_bounds=(2, 2, 1)
    )
    return SingleDeviceSharding(topology.devices[0])
