"""Python API: `LLM` and `AsyncLLM` run a model in this process, through the same service as HTTP."""
