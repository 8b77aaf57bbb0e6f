# Two images of one source: `api` (no torch) and `worker` (torch with CUDA). Both run as a user without rights.
# What they install is locked, with hashes, in docker/: `make lock` writes it anew.
# Tags and digests belong together: `docker buildx imagetools inspect TAG` prints the digest of a newer one.
FROM python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51 AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore PYTHONPATH=/opt/mdc MDC_DATA_DIR=/var/lib/mdc
# The folder exists with its owner before a volume is mounted on it: a new volume takes over both.
RUN useradd --system --uid 10001 --create-home mdc \
    && install --directory --owner mdc --group mdc /var/lib/mdc /var/lib/mdc/datasets
WORKDIR /opt/mdc

FROM base AS api
# Previews write class names in any script.
RUN apt-get update && apt-get install --yes --no-install-recommends fonts-dejavu-core fonts-unifont \
    && rm -rf /var/lib/apt/lists/*
COPY docker/requirements-api.txt docker/
RUN pip install --no-deps --require-hashes --requirement docker/requirements-api.txt
COPY mdc_core mdc_core
COPY mdc_device mdc_device
COPY mdc_cli mdc_cli
COPY server server
COPY worker worker
COPY migrations migrations
USER mdc
WORKDIR /var/lib/mdc
EXPOSE 8000
CMD ["python", "-m", "server", "--host", "0.0.0.0"]

FROM base AS worker
# Kernels for GPUs are compiled when they are first run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY docker/requirements-worker.txt docker/
RUN pip install --no-deps --require-hashes --requirement docker/requirements-worker.txt
COPY mdc_core mdc_core
COPY mdc_device mdc_device
COPY mdc_cli mdc_cli
COPY server server
COPY worker worker
COPY migrations migrations
USER mdc
WORKDIR /var/lib/mdc
CMD ["python", "-m", "worker"]
