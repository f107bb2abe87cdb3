"""Tokenizer of a model in this process, under the names of transformers that vLLM's users know."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..generation.prompts import Prompt
from ..generation.requests import chat_conversation
from ..generation.service import Service
from ..text.tokenizer import TextUnavailableError
from .arguments import checks_arguments
from .errors import RequestError, python_errors, wrong_value
from .requests import Conversation, as_token_ids, chat_fields
from .sampling_params import SamplingParams


class LLMTokenizer:
    """Encodes and decodes text and conversations; `get_tokenizer` of `LLM` and `AsyncLLM` returns it.

    Attributes:
      vocab_size: Size of the model's vocabulary.
      bos_token_id, bos_token: Token that begins every prompt, and its name; None if there is none.
      eos_token_id, eos_token: First token that ends a generation, and its name; None if there is none.

    Args:
      service: Service of the model.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenizer = service.model.tokenizer
        self.vocab_size = self._tokenizer.vocab_size
        self.bos_token_id = self._tokenizer.bos_id
        self.eos_token_id = next(iter(service.model.end_token_ids), None)
        self.bos_token = self._name(self.bos_token_id)
        self.eos_token = self._name(self.eos_token_id)

    def __len__(self) -> int:
        return self.vocab_size

    @checks_arguments
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, as `LLM.generate` prefills them.

        Args:
          add_special_tokens: Whether a BOS is put in front.

        Raises:
          RequestError: The checkpoint has no tokenizer.
        """
        try:
            token_ids = self._tokenizer.encode(text)
        except TextUnavailableError as error:
            raise RequestError(str(error)) from None
        return [self.bos_token_id, *token_ids] if add_special_tokens and self.bos_token_id is not None else token_ids

    @checks_arguments
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of tokens; control tokens are spelled out, unless they are skipped.

        Raises:
          RequestError: An id is no token of the vocabulary.
        """
        ids = as_token_ids(token_ids)
        if ids is None or not all(0 <= token_id < self.vocab_size for token_id in ids):
            raise wrong_value("token_ids", f"a list of ids from 0 to {self.vocab_size - 1}", token_ids)
        if skip_special_tokens:
            return self._tokenizer.decode(ids)
        return Prompt(ids, from_text=True).text(self._tokenizer)

    @checks_arguments
    def apply_chat_template(
        self,
        conversation: Conversation,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **template_variables: Any,
    ) -> str | list[int]:
        """Returns the prompt that `LLM.chat` builds from a conversation.

        As text it has no BOS, which `LLM.generate` puts in front.

        Args:
          conversation: Messages, oldest first.
          tools: Functions that the model may call.
          tokenize: Whether to return token ids rather than text.
          add_generation_prompt: Whether the prompt ends with the header of an assistant's message.
          template_variables: Variables for the checkpoint's chat template.

        Raises:
          RequestError: A message is invalid.
        """
        fields = chat_fields(
            conversation,
            SamplingParams(),
            {
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
                "chat_template_kwargs": template_variables,
            },
        )
        with python_errors():
            token_ids = self._service.prompts.encoded_chat(chat_conversation(fields)).token_ids
        if tokenize:
            return list(token_ids)
        begins_with_bos = token_ids[0] == self.bos_token_id
        return Prompt(token_ids, from_text=True, adds_bos=begins_with_bos).text(self._tokenizer)

    def _name(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._tokenizer.token_text(token_id)
