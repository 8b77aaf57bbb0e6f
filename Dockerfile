# Two images of one source: `api` (no torch) and `worker` (torch with CUDA). Both run as a user without rights.
FROM python:3.11-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore MDC_DATA_DIR=/var/lib/mdc
# The folder exists with its owner before a volume is mounted on it: a new volume takes over both.
RUN useradd --system --uid 10001 --create-home mdc \
    && install --directory --owner mdc --group mdc /var/lib/mdc /var/lib/mdc/datasets
WORKDIR /opt/mdc
# What the dependencies follow from, without the sources: editing a source file installs none of them again.
COPY pyproject.toml README.md LICENSE ./

FROM base AS api
RUN pip install '.[server]'
COPY mdc_core mdc_core
COPY mdc_device mdc_device
COPY mdc_cli mdc_cli
COPY server server
COPY worker worker
COPY migrations migrations
RUN pip install --no-deps --force-reinstall .
USER mdc
WORKDIR /var/lib/mdc
EXPOSE 8000
CMD ["python", "-m", "server", "--host", "0.0.0.0"]

FROM base AS worker
# Kernels for GPUs are compiled when they are first run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install '.[worker]'
COPY mdc_core mdc_core
COPY mdc_device mdc_device
COPY mdc_cli mdc_cli
COPY server server
COPY worker worker
COPY migrations migrations
RUN pip install --no-deps --force-reinstall .
USER mdc
WORKDIR /var/lib/mdc
CMD ["python", "-m", "worker"]
