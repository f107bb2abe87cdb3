"""Chat messages to prompt token ids: Gemma's turn format, or a checkpoint's template."""

from .format import ChatFormat, load_chat_format
from .layout import NEW_TURN, Ending
from .turns import ChatFormatError, Message

__all__ = ["NEW_TURN", "ChatFormat", "ChatFormatError", "Ending", "Message", "load_chat_format"]
