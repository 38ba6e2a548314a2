# syntax=docker/dockerfile:1
# Policy engine, curation and training, with torch.
#
#   docker build -f docker/torch.Dockerfile -t acgs/constitutional-trainer:v1.0.0 .
#
# torch's wheels bring CUDA's libraries, so the base is the smallest that tells the NVIDIA runtime which driver they
# need. Without a GPU the same image runs on the processor.
# Runs as 1000:1000 and writes to /var/lib/flywheel, /app and /tmp alone, so run it with a read-only root.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${CUDA_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /opt/flywheel
COPY docker/install docker/install
RUN docker/install/system.sh demo && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY agents agents
COPY models models
COPY otel otel
COPY policies policies
RUN --mount=type=cache,target=/var/cache/pip \
    docker/install/python.sh .venv engine train kubernetes && docker/install/finish-image.sh .venv

FROM ${CUDA_IMAGE}
ARG VERSION=v1.0.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Constitutional Flywheel, trainer" \
      org.opencontainers.image.description="Policy engine, curation and training, with torch" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04"
COPY docker/install /tmp/install
RUN /tmp/install/system.sh demo && /tmp/install/account.sh && rm -rf /tmp/install /var/lib/apt/lists/*
COPY --from=build /opt/flywheel /opt/flywheel
# Python never looks for packages in the working folder: mounted there are folders whose names packages have.
# OpenMP's threads must not spin long while they wait (the same values as `make` sets).
ENV PATH=/opt/flywheel/.venv/bin:${PATH} \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    OMP_WAIT_POLICY=passive \
    GOMP_SPINCOUNT=1000 \
    FLYWHEEL_DATA_DIR=/var/lib/flywheel \
    FLYWHEEL_TRAINING__MODEL_CACHE=/app/models/base \
    FLYWHEEL_TRAINING__ARTIFACTS=/app/data/models \
    HEALTH_URL=http://127.0.0.1:8010/health/ready
WORKDIR /app
USER 1000:1000
STOPSIGNAL SIGTERM
EXPOSE 6067 8001 8010
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD ["/opt/flywheel/docker/install/healthy.sh"]
ENTRYPOINT ["flywheel"]
CMD ["worker", "train"]
