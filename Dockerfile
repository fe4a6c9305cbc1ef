# base → api (without torch) → worker → test. What they install and run is what the Makefile and a person install and run.
# Everything comes as a wheel, so no stage needs a compiler.

# The Python that the versions of constraints.txt were tested with.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/srv/secateur
RUN useradd --uid 10001 --create-home secateur \
    && install --directory --owner secateur --group secateur /artifacts /data
WORKDIR /srv/secateur
# The dependencies ahead of the code, which is found through PYTHONPATH: their layers outlive every change of it.
COPY clients/python clients/python/
COPY pyproject.toml constraints.txt README.md ./
RUN pip install -c constraints.txt ./clients/python '.[otel]'

FROM base AS api
COPY migrations migrations/
COPY worker worker/
COPY app app/
# Whoever runs it may not write there.
RUN python -m compileall -q app migrations worker
USER secateur
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["secateur", "api", "--host", "0.0.0.0", "--port", "8000"]

# Not from api, whose code changes more often than these gigabytes.
FROM base AS worker
RUN pip install -c constraints.txt '.[worker,otel]'
COPY migrations migrations/
COPY worker worker/
COPY app app/
RUN python -m compileall -q app migrations worker
USER secateur
# The first sign of life comes once torch is imported.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python", "-m", "worker.health"]
CMD ["secateur", "worker"]

FROM worker AS test
USER root
RUN pip install -c constraints.txt '.[worker,local,otel,dev]'
COPY .ci .ci/
COPY deploy deploy/
COPY docs docs/
COPY Makefile Dockerfile docker-compose.yml .dockerignore .env.example ./
COPY tests tests/
RUN chown --recursive secateur .
USER secateur
HEALTHCHECK NONE
# Without what a container cannot do.
CMD ["python", "-m", "pytest", "-m", "not acceptance and not chaos and not host"]
