# syntax=docker/dockerfile:1
# Routing, monitoring, their web servers and the audit engine; no torch.
#
#   docker build -f docker/slim.Dockerfile -t acgs/constitutional-flywheel:v1.0.0 .
#
# Runs as 1000:1000 and writes to /var/lib/flywheel, /app and /tmp alone, so run it with a read-only root.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /opt/flywheel
# The environment is made where it will run: its programs name that folder.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY docker/install docker/install
COPY app app
COPY agents agents
COPY models models
COPY otel otel
COPY policies policies
RUN --mount=type=cache,target=/var/cache/pip \
    docker/install/system.sh demo && docker/install/python.sh .venv && docker/install/finish-image.sh .venv

FROM ${PYTHON_IMAGE}
ARG VERSION=v1.0.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Constitutional Flywheel" \
      org.opencontainers.image.description="Routing, monitoring, web and audit engine, without torch" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12.12-slim-bookworm"
COPY docker/install/account.sh /tmp/account.sh
RUN /tmp/account.sh && rm /tmp/account.sh
COPY --from=build /opt/flywheel /opt/flywheel
# Python never looks for packages in the working folder: mounted there are folders whose names packages have.
ENV PATH=/opt/flywheel/.venv/bin:${PATH} \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    FLYWHEEL_DATA_DIR=/var/lib/flywheel \
    HEALTH_URL=http://127.0.0.1:6066/health/ready
WORKDIR /app
USER 1000:1000
STOPSIGNAL SIGTERM
EXPOSE 6066 8000 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["/opt/flywheel/docker/install/healthy.sh"]
ENTRYPOINT ["flywheel"]
CMD ["worker", "route"]
