"""Connection limits on top of uvicorn's protocols."""
