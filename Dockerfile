# The image, from scratch: `docker build -t postrider .` What is in it is laid out by scripts/image, as in the tests.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The cache keeps RocksDB and what else was built, from one image to the next.
RUN --mount=type=cache,target=/root/.cache/postrider \
    --mount=type=cache,target=/usr/local/cargo/registry \
    scripts/setup && scripts/image /image

FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/bin
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
# submission, submissions, trusted, metrics and health, admin
EXPOSE 1587 1465 1025 9464 8081
ENTRYPOINT ["/usr/bin/postrider"]
CMD ["run"]
