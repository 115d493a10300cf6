# The images of operator and tail-server for those who have a container engine:
#
#     docker build --target operator --tag headway-operator .
#     docker build --target tail-server --tag headway-tail-server .
#
# Without one, `cargo xtask images` writes the same files as OCI archives. What is in them is said in one place,
# images/src/recipe.rs; there is no distribution below.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils ca-certificates git
WORKDIR /headway
COPY . .
RUN cargo xtask images --part operator --folder /images/operator
RUN cargo xtask images --part tail-server --folder /images/tail-server

FROM scratch AS operator
COPY --from=build /images/operator /
USER 65532:65532
ENTRYPOINT ["/usr/bin/headway-operator"]

FROM scratch AS tail-server
COPY --from=build /images/tail-server /
USER 65532:65532
ENTRYPOINT ["/usr/bin/tail-server"]
