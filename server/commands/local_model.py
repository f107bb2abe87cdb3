"""Model in this process, for commands that generate without a server."""

from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import replace

from ...engine import AsyncEngine, ConfigError, ModelSource, SamplingParams, saved_state_format
from ..assembly.service import LoadProgress, engine_config, exit_while_loading, is_loading, make_engine
from ..generation.admission import Admission
from ..generation.delta import Delta
from ..generation.generation import Generation
from ..generation.requests import sampling_params as request_params
from ..generation.spec import Choice
from ..llm.errors import RequestError, checked, python_errors
from ..model_hub import find_model
from ..observability.metrics import Metrics
from ..schemas.generation_fields import GenerationFields
from ..settings import Settings
from ..text.served_model import ServedModel, open_served_model
from .sampling_options import SamplingOptions

NUM_SLOTS = 1
"""Number of slots of a model: one request runs at a time. Tests share the programs of servers with more."""


def sampling_params(sampling: SamplingOptions, model: ServedModel) -> SamplingParams:
    """Returns sampling parameters, by the rules of the HTTP API.

    Raises:
      ConfigError: A value is out of range.
    """
    try:
        with python_errors():
            fields = checked(GenerationFields, sampling.given())
            limit = model.defaults.max_tokens if fields.max_tokens is None else fields.max_tokens
            return request_params(fields, model, limit)[0]
    except RequestError as error:
        raise ConfigError(str(error)) from None


class LocalModel:
    """Model for one request at a time. The constructor reads everything except the weights; `start` loads them.

    Attributes:
      source: Checkpoint.
      model: Tokenizer, chat template and defaults.
      engine: Engine, which `start` starts.

    Raises:
      RoostError: A setting is wrong, or the model cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        config = replace(engine_config(settings), slots=NUM_SLOTS)
        self._config = config
        self.source: ModelSource = find_model(settings.model, settings.lora)
        self.model = open_served_model(self.source, config)
        self._progress = LoadProgress()
        self.engine: AsyncEngine = make_engine(self.source, config, self._progress)
        self._metrics = Metrics(lambda: self.engine.stats)

    @property
    def state_key(self) -> bytes | None:
        """Key that signs saved states; None signs nothing."""
        return self._config.state_key

    def check_state(self, data: bytes) -> None:
        """Checks the file of a saved state without the weights.

        Raises:
          StateFileError: The file is broken, belongs to another model, or is not signed with the key.
        """
        saved_state_format(self.source, self._config).load(data, self.state_key)

    async def start(self) -> None:
        """Loads the weights and compiles.

        Raises:
          RoostError: The weights do not match the model, or the model does not fit the memory.
        """
        self.engine.start()
        await self.engine.wait_ready()

    def exit_if_loading(self, status: int) -> None:
        """Exits the process with `status` if the engine is loading, since loading cannot be interrupted otherwise."""
        if is_loading(self.engine):
            exit_while_loading(self._progress, status)

    async def generate(self, request_id: str, choice: Choice) -> AsyncGenerator[Delta]:
        """Yields the deltas of a choice."""
        started = Generation.start(
            Admission(), self.engine, self.model.tokenizer, self._metrics.requests, request_id, [choice]
        )
        with closing(started) as generation:
            async for delta in generation:
                yield delta
