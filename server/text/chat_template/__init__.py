"""Chat messages to prompt token ids: Gemma's turn format, or a checkpoint's template."""

from .format import NEW_TURN, ChatFormat, ChatFormatError, Ending, Message
from .template import load_chat_format

__all__ = ["NEW_TURN", "ChatFormat", "ChatFormatError", "Ending", "Message", "load_chat_format"]
