"""Chat messages to prompt ids: Gemma's turn format, or the template that a checkpoint brings."""

from .format import ChatFormat, load_chat_format
from .layout import ANSWER, Ending
from .turns import ChatFormatError, Message

__all__ = ["ANSWER", "ChatFormat", "ChatFormatError", "Ending", "Message", "load_chat_format"]
