"""Distribution of test files to pytest's processes: files with the same programs or the same server go to one.

Files whose tests share nothing, and take minutes, go to several.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import pytest
from xdist.scheduler import LoadFileScheduling

_SAMPLERS: Final = ("tests/engine/sampling/",)

_GOLDEN_RUNNER: Final = (
    "tests/engine/prefix_cache/test_saved_state.py",
    "tests/engine/test_late_masks.py",
    "tests/engine/test_preemption.py",
    "tests/engine/test_replay.py",
    "tests/engine/test_resume.py",
    "tests/engine/test_resume_inexact.py",
    "tests/engine/worker/test_runner.py",
)

_SERVER: Final = (
    "tests/e2e/test_anthropic_client.py",
    "tests/e2e/test_batch.py",
    "tests/e2e/test_bench.py",
    "tests/e2e/test_command_line.py",
    "tests/e2e/test_openai_client.py",
    "tests/e2e/test_prometheus.py",
    "tests/e2e/test_python_api.py",
    "tests/e2e/test_structured_http.py",
)

GROUPS: Final = (_SAMPLERS, _GOLDEN_RUNNER, _SERVER)
"""Paths, or their beginnings, of the files of each process. What they share takes seconds to compile or to start."""

APART: Final = (
    "tests/e2e/test_adoptions.py",
    "tests/e2e/test_durable.py",
    "tests/e2e/test_features.py",
    "tests/e2e/test_server_batches.py",
)
"""Paths of the files whose tests each start servers of their own."""

BITS: Final = (
    "tests/engine/model/test_griffin_properties.py",
    "tests/engine/model/test_quantization.py",
    "tests/engine/test_numbers_of_slots.py",
    "tests/engine/worker/test_int8_window.py",
    "tests/engine/worker/test_many_key_heads.py",
    "tests/kernels/test_native.py",
    "tests/kernels/test_recurrence.py",
)
"""Paths of the files that compare bits of results, which depend on the processor; marked `bits`."""

FOR_CHIPS: Final = ("tests/tpu/", "tests/gpu/")
"""Beginnings of the paths of files that compile for chips which are not there. Their programs are never kept, since
JAX can't read them again."""

OPTIMIZED: Final = (
    *BITS,
    *FOR_CHIPS,
    *_GOLDEN_RUNNER,
    "tests/e2e/test_demo.py",
    "tests/e2e/test_demo_state.py",
    "tests/e2e/test_golden_http.py",
    "tests/e2e/test_predictions_http.py",
    "tests/e2e/test_request_path.py",
    "tests/e2e/test_random_configs_http.py",
    "tests/e2e/test_speculation_http.py",
    "tests/engine/model/test_many_configs.py",
    "tests/engine/model/test_quantization_demo.py",
    "tests/engine/model/test_rope.py",
    "tests/engine/test_mesh.py",
    "tests/engine/test_speculation.py",
    "tests/engine/worker/",
    "tests/kernels/test_int4.py",
)
"""Beginnings of the paths of files that compile as servers do: those that compare bits, and those whose programs are
large. Other tests compile without most optimizations, which takes half as long."""

FULL: Final = (
    "tests/e2e/test_adapters.py",
    "tests/e2e/test_backups.py",
    "tests/e2e/test_bench.py",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_demo_state.py",
    "tests/e2e/test_features.py",
    "tests/e2e/test_fleet_upgrades.py",
    "tests/e2e/test_golden_http.py",
    "tests/e2e/test_idle_connections.py",
    "tests/e2e/test_long_conversations.py",
    "tests/e2e/test_moved_chats.py",
    "tests/e2e/test_predictions_http.py",
    "tests/e2e/test_request_path.py",
    "tests/e2e/test_reloads.py",
    "tests/e2e/test_store_at_start.py",
    "tests/e2e/test_stored_usage.py",
    "tests/e2e/test_tls.py",
    "tests/e2e/test_unix_socket.py",
    "tests/engine/checkpoint/test_calibration.py",
    "tests/engine/model/test_many_configs.py",
    "tests/engine/test_kernel_checks.py",
    "tests/engine/test_numbers_of_slots.py",
    "tests/engine/test_speculation.py",
    "tests/engine/test_toy_layer.py",
    "tests/engine/worker/test_int8_window.py",
    "tests/engine/worker/test_layer_slices.py",
    "tests/engine/worker/test_many_key_heads.py",
    "tests/engine/worker/test_runner_int4.py",
    "tests/engine/worker/test_earlier_starts.py",
    "tests/kernels/test_gpu_lowering.py",
    "tests/kernels/test_pallas",
    "tests/kernels/test_races.py",
    "tests/kernels/test_sampling_kernel.py",
    "tests/tools/test_train_demo.py",
)
"""Beginnings of the paths of files that compile large programs, interpret kernels or start servers of their own, and
test more closely what others reach; marked `full`. The default run leaves them out."""

ON_POSTGRESQL: Final = (
    "tests/server/database/",
    "tests/server/features/responses/test_response_table.py",
    "tests/server/features/usage/",
    "tests/server/storage/",
)
"""Beginnings of the paths of files whose cases of PostgreSQL run by default: transactions that wait for each other, and
what keeps them from it. Those of other files run with `--all`, as their twins of SQLite reach the same code."""

FIRST: Final = "tests/robust/test_soak.py"
"""Path of a file that takes two minutes on any machine, and so would end last."""


def scope_of(test_id: str) -> str:
    """Returns the name of the tests that run in the same process.

    It is the first file of a group, the test's own file, or the test.
    """
    if test_id.startswith(APART):
        return test_id
    group = next((group for group in GROUPS if test_id.startswith(group)), None)
    return test_id.partition("::")[0] if group is None else group[0]


def shuffled(items: Sequence[pytest.Item], seed: str) -> list[pytest.Item]:
    """Returns tests in a random order, in which those of a file stay together."""
    random, files = Random(seed), defaultdict[Path, list[pytest.Item]](list)
    for item in items:
        files[item.path].append(item)
    order = random.sample(list(files.values()), len(files))
    return [item for tests in order for item in random.sample(tests, len(tests))]


class SharedScheduling(LoadFileScheduling):
    """Gives the files of a group to one process, and other files to any."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
