# Three images: `loader` (the command `tonnage`), `peer` (the same with nginx) and `operator` (`tonnage-operator`). `hack/images/build.py` builds them; see
# docs/contributing/images.md.
#
# A build machine's settings (package index, a proxy's CA, options of apt) are passed as build secrets, so that they don't
# stay in an image: `pip.conf`, `ca.pem` and `apt.conf`. All are optional.

# Builds for publication set a digest: --build-arg BASE=docker.io/library/debian:bookworm-slim@sha256:…
ARG BASE=docker.io/library/debian:bookworm-slim

# The base of both images: Python, trusted CAs and a user. Distribution packages are pinned to the upstream version only,
# so that security fixes of the release are installed.
FROM ${BASE} AS runtime
ENV LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends 'python3=3.11.2-*' 'ca-certificates=20230311*' \
    && groupadd --gid 65532 tonnage \
    && useradd --uid 65532 --gid tonnage --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tonnage \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
        /var/log/apt /var/log/*.log /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-

# pip and the build backend, for building only, and an environment without them for the images.
FROM runtime AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements/image-build.txt /build/
# hadolint ignore=DL3009
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends 'python3-venv=3.11.2-*' \
    && python3 -m venv --without-pip /opt/tonnage \
    && python3 -m venv /build/venv \
    && /build/venv/bin/pip install --quiet --only-binary :all: --require-hashes --requirement /build/image-build.txt

# The loader's packages, compiled because a read-only root can't store compiled files. They are not checked against the
# sources at each start: images don't change.
FROM tools AS loader-packages
COPY requirements/runtime.txt /build/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    mkdir -p /out/loader/opt && cp -a /opt/tonnage /out/loader/opt/ \
    && /build/venv/bin/pip --python /opt/tonnage/bin/python install --quiet --root /out/loader --no-compile \
        --only-binary :all: --require-hashes --requirement /build/runtime.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /out/loader -p / /out/loader

# The operator's packages without those of the loader, so that the images share a layer.
FROM loader-packages AS operator-packages
COPY requirements/image-operator.txt /build/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    /build/venv/bin/pip --python /opt/tonnage/bin/python install --quiet --root /out/operator --no-compile \
        --only-binary :all: --require-hashes --requirement /build/image-operator.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /out/operator -p / /out/operator \
    && find /out/loader ! -type d -printf '/out/operator/%P\0' >/build/shared \
    && xargs -0 -a /build/shared rm -f \
    && find /out/operator -type d -empty -delete

# The compiler, which is in no image.
FROM tools AS compiler
# hadolint ignore=DL3009
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        'gcc=4:12.2.0-*' 'libc6-dev=2.36-*'

# Tonnage itself: all of it for the operator, without the operator's package for the loader. .dockerignore lists the files
# that are copied. A wheel of Python files and of libraries that it loads itself can be installed by unpacking it.
FROM compiler AS package
WORKDIR /build/source
COPY . .
RUN for image in operator loader; do \
        site="/out/$image/opt/tonnage/lib/python3.11/site-packages" \
        && if [ "$image" = loader ]; then \
            sed -i -e '/^tonnage-operator = /d' -e '/^kubectl-tonnage = /d' -e 's|, "operator/tonnage_operator"||' pyproject.toml; \
        fi \
        && /build/venv/bin/hatchling build -t wheel -d "/build/$image" >/dev/null \
        && python3 -m zipfile -e "/build/$image"/*.whl "$site" \
        && test -f "$site/tonnage/format/crc.so" && test -f "$site/tonnage/transfer/receive.so" \
        && python3 -m compileall -q --invalidation-mode unchecked-hash -s "/out/$image" -p / "$site" \
        && install -D -m 0755 hack/images/entrypoint.py "/out/$image/usr/local/bin/tonnage" \
        || exit 1; \
    done \
    && ln -s tonnage /out/operator/usr/local/bin/tonnage-operator

FROM runtime AS packaged
COPY --from=loader-packages /out/loader /

# The loader. The pod sets the user: root if it writes to a host path, otherwise any.
FROM packaged AS loader
USER 65532:65532
# The loader has no server to check. Pods have a startup probe.
HEALTHCHECK NONE
ENTRYPOINT ["tonnage"]
CMD ["--help"]
COPY --from=package /out/loader /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tonnage-loader" \
    org.opencontainers.image.description="Loads model weights from object storage into a verified cache on the node" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# nginx for the peer, which starts it. Its own configuration is not used.
FROM packaged AS nginx
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends 'nginx-light=1.22.1-*' \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
        /var/log/apt /var/log/*.log /var/log/nginx /var/www /etc/nginx/sites-enabled /etc/passwd- /etc/group- \
        /etc/shadow- /etc/gshadow-

# A peer: the loader's command `tonnage peer serve`.
FROM nginx AS peer
USER 65532:65532
EXPOSE 9443
# Kubernetes has probes; there is no certificate outside of it.
HEALTHCHECK NONE
ENTRYPOINT ["tonnage"]
CMD ["peer", "--help"]
COPY --from=package /out/loader /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tonnage-peer" \
    org.opencontainers.image.description="Serves the entries of a node's cache to loaders of other nodes" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# The operator: controller and webhook.
FROM packaged AS operator
COPY --from=operator-packages /out/operator /
USER 65532:65532
EXPOSE 8443 8080
# For Docker and Podman. Kubernetes ignores it; the chart has probes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["/opt/tonnage/bin/python", "-IB", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["tonnage-operator"]
CMD ["--help"]
COPY --from=package /out/operator /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tonnage-operator" \
    org.opencontainers.image.description="Keeps model weights warm on the nodes of a cluster, and injects them into pods" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
