# docker build -t raftkv .
# Where no image registry is reachable, any image with Python 3.11 or later and its venv module will do:
#   docker build -t raftkv --build-arg BASE_IMAGE=my-debian-with-python .
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY requirements-run.lock ./
RUN python3 -m venv /opt/raftkv \
 && /opt/raftkv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements-run.lock
COPY . ./
RUN /opt/raftkv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/raftkv/bin/python -m pip uninstall --yes setuptools wheel pip

FROM ${BASE_IMAGE}
COPY --from=build /opt/raftkv /opt/raftkv
# A new volume on /data takes over its owner.
RUN groupadd --system --gid 2379 raftkv \
 && useradd --system --uid 2379 --gid raftkv --no-create-home --home-dir /data raftkv \
 && install -d -o raftkv -g raftkv -m 0700 /data
ENV PATH=/opt/raftkv/bin:$PATH \
    RAFTKV_DATA_DIR=/data/member \
    RAFTKV_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 \
    RAFTKV_LISTEN_PEER_URLS=http://0.0.0.0:2380
USER raftkv
WORKDIR /data
VOLUME /data
EXPOSE 2379 2380
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["raftctl", "endpoint", "health"]
CMD ["raftkv"]
