"""Builds conversations."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from ....generation.admission import admission
from ....http.response_parts import to_json
from ....tenancy.tenant import tenant
from .records import ConversationRecord


def new_conversation(metadata: Mapping[str, str]) -> ConversationRecord:
    """Returns a new conversation, which is not stored yet."""
    return ConversationRecord(tenant.get(), f"conv_{uuid4().hex}", int(time.time()), to_json(metadata))


def described_conversation(record: ConversationRecord) -> dict[str, Any]:
    """Returns a conversation in the form that clients receive."""
    metadata = admission.get().parse_stored(record.metadata)
    return {"id": record.id, "object": "conversation", "created_at": record.created, "metadata": metadata}
