"""`POST /tokenize` and `/detokenize`, in vLLM's shapes."""

from fastapi import APIRouter, Response

from ..errors import bad_value
from ..prompts import Prompt
from ..schema import DetokenizeBody, TokenizeBody
from ..service import AnyService, Service, json_response

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, service: AnyService) -> Response:
    service.check(body)
    token_ids = (await _encode(body, service)).token_ids
    return json_response({"tokens": token_ids, "count": len(token_ids), "max_model_len": None})


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, service: AnyService) -> Response:
    """The inverse of `/tokenize`: control tokens are spelled out, apart from the BOS that it adds."""
    service.check(body)
    tokenizer = service.model.tokenizer
    if not tokenizer.has_text:
        raise bad_value("tokens", "this checkpoint has no tokenizer, so its tokens have no text")
    if not body.tokens:
        return json_response({"prompt": ""})
    token_ids = service.prompts.token_ids(body.tokens, param="tokens").token_ids
    prompt = Prompt(token_ids, from_text=True, adds_bos=token_ids[0] == tokenizer.bos_id)
    return json_response({"prompt": prompt.text(tokenizer)})


async def _encode(body: TokenizeBody, service: Service) -> Prompt:
    if (body.prompt is None) == (body.messages is None):
        raise bad_value("prompt", "send either prompt or messages")
    if body.messages is not None:
        return await service.prompts.chat(body.messages, body.ending)
    assert body.prompt is not None
    return (await service.prompts.completions([body.prompt], add_bos=body.add_special_tokens))[0]
