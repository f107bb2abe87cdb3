"""Builds the service that HTTP and the Python API share."""

import math

from ...engine import AsyncEngine, EngineConfig
from ..constraints.grammar import GrammarCompiler, GrammarLimits
from ..generation.admission import Admissions
from ..generation.prompts import PromptEncoder
from ..generation.service import Limits, Service
from ..generation.state_store import StateStore
from ..observability.metrics import Metrics
from ..settings import Settings
from ..text.served_model import ServedModel


def make_service(
    settings: Settings,
    config: EngineConfig,
    engine: AsyncEngine,
    model: ServedModel,
    metrics: Metrics,
) -> Service:
    """Returns the service of an engine, which need not be started."""
    admissions = Admissions(settings.max_body_bytes, tenants=config.tenants)
    grammar_limits = GrammarLimits(max_forced=0 if config.speculation is None else config.speculation.num_tokens)
    return Service(
        engine=engine,
        model=model,
        metrics=metrics,
        prompts=PromptEncoder(model, admissions.workers),
        admissions=admissions,
        grammars=GrammarCompiler(model.tokenizer, model.end_token_ids, tenants=config.tenants, limits=grammar_limits),
        limits=Limits(
            max_choices=config.max_queue if config.tenants == 1 else -(-config.max_queue // 2),
            max_choices_tokens=config.max_queue_tokens,
            request_timeout_s=math.inf if settings.request_timeout is None else settings.request_timeout,
            max_prompt_tokens=settings.max_prompt_tokens,
        ),
        salt_by_key=settings.cache_salt_by_key,
        state_key=config.state_key,
        states=StateStore(config.tenants),
    )
