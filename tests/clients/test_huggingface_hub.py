"""huggingface_hub since 1.0; `neighbours/` has the version before."""

import pytest
from hugging_face import check_chat
from server_process import ServerProcess


@pytest.mark.usefixtures("local_hub")
def test_chat(server: ServerProcess) -> None:
    check_chat(server)
