# The server as an image, for one kind of device each:
#   docker build --target cpu  -t roost:0.1.0-cpu  .
#   docker build --target tpu  -t roost:0.1.0-tpu  .
#   docker build --target cuda -t roost:0.1.0-cuda .
# For a release, add --build-arg REVISION="$(git rev-parse HEAD)", which becomes a label.
# Any base with a Python from 3.12 on will do; for a release, name it with its digest (--build-arg BASE=…@sha256:…).
ARG BASE=python:3.13-slim-trixie

# --- what installs: a compiler, and packages by the hashes of their locks
FROM ${BASE} AS builder
# Where pip finds the certificates of a proxy in between, if there is one.
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The base decides on Debian's versions, and nothing of this gets into the image.
# hadolint ignore=DL3008
RUN command -v g++ || (apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/roost
WORKDIR /src
COPY requirements requirements

FROM builder AS build-cpu
RUN /opt/roost/bin/pip install --no-deps --require-hashes -r requirements/cpu.txt -r requirements/buckets.txt -r requirements/otel.txt
FROM builder AS build-tpu
RUN /opt/roost/bin/pip install --no-deps --require-hashes -r requirements/tpu.txt -r requirements/buckets.txt -r requirements/otel.txt
FROM builder AS build-cuda
RUN /opt/roost/bin/pip install --no-deps --require-hashes -r requirements/cuda13.txt -r requirements/buckets.txt -r requirements/otel.txt

# Then Roost itself, its C++ kernels compiled; what only installs and compiles stays behind.
FROM build-cpu AS whole-cpu
COPY . .
RUN /opt/roost/bin/pip install --no-deps --no-build-isolation . && /opt/roost/bin/pip uninstall --yes setuptools pip
FROM build-tpu AS whole-tpu
COPY . .
RUN /opt/roost/bin/pip install --no-deps --no-build-isolation . && /opt/roost/bin/pip uninstall --yes setuptools pip
FROM build-cuda AS whole-cuda
COPY . .
RUN /opt/roost/bin/pip install --no-deps --no-build-isolation . && /opt/roost/bin/pip uninstall --yes setuptools pip

# --- what runs: Python, the packages, and a user who owns nothing. Any other user of group 0, as OpenShift's, may take its place.
FROM ${BASE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin roost \
    && install --directory --owner=roost --group=root --mode=0775 /cache
ENV PATH=/opt/roost/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["roost"]
CMD ["serve", "--host", "0.0.0.0"]
# Docker and Compose ask it; Kubernetes has probes of its own. Nothing listens while weights are downloaded.
COPY deploy/healthcheck.py /usr/local/lib/roost/healthcheck.py
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --start-interval=5s \
    CMD ["python3", "/usr/local/lib/roost/healthcheck.py"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Roost" \
    org.opencontainers.image.description="An inference server for RecurrentGemma and other Griffin models" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0 AND MIT"

FROM runtime AS tpu
COPY --from=whole-tpu /opt/roost /opt/roost

# For NVIDIA GPUs of compute capability 8.0 and above, with a driver for CUDA 13 (580 or later).
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=whole-cuda /opt/roost /opt/roost

# The last one is what `docker build .` makes.
FROM runtime AS cpu
COPY --from=whole-cpu /opt/roost /opt/roost
