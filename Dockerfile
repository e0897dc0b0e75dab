# Two images from one file. The serving one has no torch (workers never import it):
#   docker build --tag headwater .
#   docker build --tag headwater-train --build-arg LOCK=deploy/train.lock .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=300
WORKDIR /src
COPY requirements-installer.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements-installer.lock \
    && python -m venv --without-pip /opt/headwater
ARG LOCK=deploy/serve.lock
COPY deploy deploy
RUN uv pip sync --python /opt/headwater/bin/python --require-hashes "${LOCK}"
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY headwater headwater
COPY streams streams
COPY producers producers
COPY model_core model_core
RUN uv pip install --python /opt/headwater/bin/python --no-deps --build-constraints requirements.lock .

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/headwater --create-home headwater
COPY --from=build /opt/headwater /opt/headwater
ENV PATH=/opt/headwater/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER headwater
WORKDIR /var/lib/headwater
VOLUME /var/lib/headwater
HEALTHCHECK --interval=10s --timeout=4s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["headwater"]
CMD ["--help"]
