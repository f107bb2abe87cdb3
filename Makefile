# Short names for dev.py, which does the work: `make test` is `python3 dev.py test`.
.PHONY: serve test test-compat test-clients test-tpu test-gpu lint lock

serve test test-compat test-clients test-tpu test-gpu lint lock:
	python3 dev.py $@
