# The image of Adit: one static binary and the authorities that the web trusts, nothing else.
#
#   docker build -t adit .                        # needs nothing but Docker: compiles in a container
#   docker build -t adit --target prebuilt .      # asks no registry: takes dist/adit and dist/ca-certificates.crt
#
# The stages stand in this order because Docker's old builder makes every stage above the one asked for.

FROM scratch AS base
# Rights for tun are given to root alone, so the program begins as root and becomes this user, who keeps CAP_NET_ADMIN.
# Started as anybody else (docker run --user), it stays who it is.
# STATE_DIRECTORY is the default of state_dir, and key in it that of key_file: a configuration file may say otherwise.
ENV ADIT_USER=10001:10001 \
    ADIT_GENERATE_KEY=true \
    ADIT_LOG_FORMAT=json \
    STATE_DIRECTORY=/var/lib/adit \
    XDG_RUNTIME_DIR=/var/lib/adit
# A volume that is mounted here begins as what the image has: a folder of that user's.
COPY --chown=10001:10001 packaging/docker/state/ /var/lib/adit/
VOLUME /var/lib/adit
EXPOSE 7443/tcp 7443/udp 8443/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/usr/bin/adit", "health"]
ENTRYPOINT ["/usr/bin/adit"]
CMD ["server"]

FROM base AS prebuilt
COPY dist/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY dist/adit /usr/bin/adit

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /adit
COPY . .
RUN cargo rustc --release --locked --package adit --bin adit -- -C target-feature=+crt-static \
 && mkdir /dist \
 && cp target/release/adit /etc/ssl/certs/ca-certificates.crt /dist/

FROM base
COPY --from=build /dist/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /dist/adit /usr/bin/adit
