# What the worker stands on: Java, HAProxy, Python and the locked Python set: images/build worker-dependencies
# An image of its own, as it changes rarely and takes minutes; the worker's own code is copied onto it in a second.
#
# BASE        a Debian 12: slim, or one with CUDA's compiler, by which DeepSpeed's operations are then built
# PACKAGES    installed: the locked set is in the image. mounted: it is not, and the node mounts one at
#             /opt/lmd/lib/python3.11/site-packages; for tests, on machines that have it already
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
# The package of Java links its manual pages, which slim images have no folder for.
RUN mkdir --parents /usr/share/man/man1 && apt-get update \
    && apt-get install --yes --no-install-recommends haproxy libaio1 openjdk-17-jre-headless python3 \
    && rm --recursive --force /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

FROM system AS build
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates g++ libaio-dev python3-dev python3-venv
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/lmd
COPY images/worker/requirements.txt /requirements.txt
ARG PACKAGES=installed
# DeepSpeed comes as source and asks torch what it can build, so it comes last; what parameters on disk need is built for any device.
RUN --mount=type=secret,id=authorities \
    if [ "$PACKAGES" = mounted ]; then exit; fi; \
    if [ -f /run/secrets/authorities ]; then export PIP_CERT=/run/secrets/authorities; fi; \
    awk '/^[a-z]/ { last = /^deepspeed==/ } { print > (last ? "/last.txt" : "/first.txt") }' /requirements.txt \
    && /pip/bin/pip --python /opt/lmd/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: \
        --requirement /first.txt
# For CPUs its async_io is not linked with libaio (0.19.8, op_builder/async_io.py). Files of torch that are no Python 3.11 cannot be
# compiled and stay as they are.
RUN --mount=type=secret,id=authorities \
    if [ "$PACKAGES" = mounted ]; then exit; fi; \
    if [ -f /run/secrets/authorities ]; then export PIP_CERT=/run/secrets/authorities; fi; \
    export DS_BUILD_AIO=1 DS_BUILD_PIN_MEMORY=1 LDFLAGS="-Wl,--no-as-needed -laio" \
    && if command -v nvcc; then export DS_BUILD_OPS=1; else export DS_BUILD_OPS=0; fi \
    && /pip/bin/pip --python /opt/lmd/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes --no-build-isolation \
        --requirement /last.txt \
    && { command -v nvcc || /opt/lmd/bin/python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()'; } \
    && { python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/lmd/lib || true; }

FROM system
COPY --from=build /opt/lmd /opt/lmd
# With mounted packages there is no torchrun of theirs; TorchServe starts it by this name, beside our Python.
RUN [ -e /opt/lmd/bin/torchrun ] || printf '#!/opt/lmd/bin/python\nfrom torch.distributed.run import main\n\nmain()\n' > /opt/lmd/bin/torchrun \
    && chmod 755 /opt/lmd/bin/torchrun
