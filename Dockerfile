# The bus in a container: built in one stage, run from another that has neither compiler, pip nor sources.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy VIRTUAL_ENV=/opt/engram

# uv, and what the bus depends on, as pinned: these layers change only when the locks do.
COPY requirements/uv.lock requirements/
RUN python -m pip install --no-cache-dir --require-hashes -r requirements/uv.lock \
    && python -m venv --without-pip /opt/engram
COPY requirements/ requirements/
RUN uv pip install --no-cache --compile-bytecode --require-hashes -r requirements/runtime.lock

# The bus itself; the build backend is pinned by the same lock the project is developed with.
COPY pyproject.toml README.md LICENSE ./
COPY proto/ proto/
COPY engram_bus/ engram_bus/
COPY clients/python/ clients/python/
RUN uv pip install --no-cache --compile-bytecode --no-deps --build-constraints requirements/dev.lock ./clients/python .


FROM python:3.11-slim-bookworm
# A fixed number, so that a volume's files have the same owner on every host.
RUN groupadd --gid 10001 engram \
    && useradd --uid 10001 --gid engram --no-create-home --home-dir /data --shell /usr/sbin/nologin engram \
    && install --directory --owner engram --group engram --mode 0750 /data
COPY --from=build /opt/engram /opt/engram
ENV PATH=/opt/engram/bin:$PATH PYTHONUNBUFFERED=1 ENGRAM_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080 50051
# Alive, not ready: a bus that still folds its log or waits for disk space must not be killed for it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["engram"]
# Inside a container 127.0.0.1 reaches nobody, so the bus listens on all of the container's addresses; who may reach
# those is decided where the port is published (`--publish 127.0.0.1:8080:8080`). It asks nobody for a key until
# authentication exists, and wants that said: --allow-unauthenticated.
CMD ["serve", "--host", "0.0.0.0", "--port", "8080", "--grpc-port", "50051", "--allow-unauthenticated"]
