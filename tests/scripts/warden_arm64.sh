#!/usr/bin/env bash
# Builds the warden for 64-bit ARM as a static program, says what came of it, and runs its tests in an emulator.
#
#     tests/scripts/warden_arm64.sh [FILE]      FILE: where the program is put, if it is wanted
#
# Needed: a Docker engine with the base image (./deploy.sh makes it where no registry is reached), and cargo, which fetches
# the crates. Compiler and emulator come from Debian's packages, into a container that is removed at the end; the compiler
# from the backports, because the release's own is older than what this tree needs.
set -euo pipefail

readonly BASE=debian:trixie-slim
readonly TARGET=aarch64-unknown-linux-gnu

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RESULT=${1-}
WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/quorun-arm64.XXXXXX")
CONTAINER=

clean_up() {
    [[ -z $CONTAINER ]] || docker rm -f -v "$CONTAINER" > /dev/null 2>&1 || true
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '==> %3d s  %s\n' "$SECONDS" "$*"; }

die() {
    printf 'warden_arm64.sh: %s\n' "$*" >&2
    exit 1
}

command -v cargo > /dev/null || PATH="$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin"
docker image inspect "$BASE" > /dev/null 2>&1 \
    || docker pull -q "$BASE" > /dev/null 2>&1 \
    || die "the image $BASE is neither on the engine nor to be had from its registry; ./deploy.sh makes it"

# By this machine's cargo, with whatever registry, proxy and certificates it is set up for; the container needs none.
say "fetching the crates"
cargo vendor --locked --quiet "$WORK/vendor" > /dev/null || die "the crates could not be fetched"
mkdir -p "$WORK/.cargo"
cat > "$WORK/.cargo/config.toml" <<'END'
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "/build/vendor"
END

# The usual variables, and apt's own proxy where they are not set.
options=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!name-} ]] || options+=(--env "$name=${!name}")
done
if [[ -z ${http_proxy-}${HTTP_PROXY-} ]] && command -v apt-config > /dev/null; then
    proxy=$(apt-config shell p Acquire::http::Proxy 2> /dev/null | sed -n "s/^p='\(.*\)'\$/\1/p")
    [[ -z $proxy || $proxy == DIRECT ]] || options+=(--env "http_proxy=$proxy")
fi
# the host's network: a mirror or a name server may be reachable from nowhere else
CONTAINER=$(docker run -d --network host "${options[@]}" "$BASE" sleep 86400)
docker exec "$CONTAINER" mkdir /build
tar -C "$WORK" -c . | docker cp - "$CONTAINER:/build"
docker exec "$CONTAINER" mkdir /build/tree
tar --exclude=./target --exclude=./.git --exclude=node_modules -c . | docker cp - "$CONTAINER:/build/tree"

inside() {
    docker exec --workdir /build/tree --env DEBIAN_FRONTEND=noninteractive --env CARGO_HOME=/build/.cargo \
        --env CARGO_TARGET_DIR=/build/target --env "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc" \
        --env "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64" --env QUORUN_WARDEN_RUNNER=qemu-aarch64 \
        --env "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS=-C target-feature=+crt-static" \
        "$CONTAINER" "$@"
}

say "installing a compiler for $TARGET and an emulator"
# shellcheck disable=SC2016
inside sh -ec '
    dpkg --add-architecture arm64
    apt-get update
    mirror=$(apt-get indextargets --format "\$(REPO_URI) \$(CODENAME)" | awk "\$2 == \"trixie\" { print \$1; exit }")
    echo "deb $mirror trixie-backports main" > /etc/apt/sources.list.d/backports.list
    apt-get update
    apt-get install -y --no-install-recommends gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user binutils
    apt-get install -y --no-install-recommends -t trixie-backports cargo rustc libstd-rust-dev:arm64
' > "$WORK/install.log" 2>&1 || {
    tail -n 20 "$WORK/install.log" >&2
    die "the packages could not be installed; what apt said is above"
}

say "building with $(inside rustc --version)"
# as node/executor/build.rs does it
inside env CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
    CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo build --quiet --release --offline --locked --package quorun-warden --bin quorun-warden --target "$TARGET"
program=/build/target/$TARGET/release/quorun-warden
inside readelf -h "$program" | grep -q 'Machine:.*AArch64' || die "this is not a program for 64-bit ARM"
if inside readelf -l "$program" | grep -q INTERP; then
    die "the program is not static"
fi
say "static, $(inside stat -c %s "$program") bytes"

# Without those that are about the kernel itself: an emulator of single processes installs no filter of system calls, and
# shows the memory of its guest in words of its own.
say "its tests, in the emulator"
inside cargo test --quiet --offline --locked --package quorun-warden --target "$TARGET" -- --nocapture \
    --skip filter:: --skip memory::

if [[ $RESULT ]]; then
    docker cp "$CONTAINER:$program" "$RESULT"
    say "the program is in $RESULT"
fi
