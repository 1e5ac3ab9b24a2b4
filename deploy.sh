#!/usr/bin/env bash
# Three Quorun nodes on this machine, from nothing but this tree. See usage() below, or ./deploy.sh --help.
set -euo pipefail

usage() {
    cat <<'END'
Usage: ./deploy.sh [COMMAND] [OPTION]

Commands:
  up          (the default) build what is missing, start three nodes, run a first job, print the URLs
  rebuild     the same, with the program and all images built anew; data is kept
  down        stop and remove the nodes and their sandboxes; data is kept
  test        formatting, lints, build, all tests, and a cluster of its own from start to end; what CI runs

Options:
  --install-engine   with up, rebuild, test: if no Docker engine answers, install and start one
                     (Debian and Ubuntu; as root, or where sudo asks for no password)
  --volumes          with down: remove the nodes' data as well
  --help             this text

Needed: a Docker engine with compose (or --install-engine), and cargo with a C compiler and make (or a registry of images, to build
in a container); for test also python3 with venv, and node with npm. The base image is taken from the registry; where none
is reached, it is made from Debian's packages.

From the environment, or from a file .env in this folder, all optional:
  QUORUN_HTTP_PORT_1, _2, _3   ports on 127.0.0.1 (8080, 8081, 8082)
  QUORUN_CLUSTER               name of the cluster (quorun); two clusters on one engine need two names
  COMPOSE_PROJECT_NAME         prefix of the containers (the name of this folder); two clusters need two
  QUORUN_FILES                 a folder of this machine that the nodes see as /etc/quorun, such as ./conf
  QUORUN_TOKENS                API tokens, by their path there: /etc/quorun/tokens.toml
  QUORUN_SLOTS, QUORUN_LOG, QUORUN_CALLBACK_ALLOW_PRIVATE, QUORUN_MAX_QUEUE, ...
                               any setting of the nodes (quorun serve --help); docker-compose.yaml lists them
  QUORUN_TOKEN, QUORUN_TOKEN_FILE
                               where the nodes want tokens: the one that the first job is posted with, or a file with it
The environment goes before the file. A change takes effect with the next ./deploy.sh.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")"
# the engine and iptables live where an ordinary user's PATH may not lead
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

readonly BASE=debian:trixie-slim
readonly SUITE=trixie
# the newest C library that a program for the base image may have been linked with
readonly BASE_GLIBC=2.41
readonly RUST_IMAGE=rust:1.95-slim-trixie
readonly PULL_SECONDS=60
readonly READY_SECONDS=120
readonly PYTHON_JOB='print(sum(range(10)))'

INSTALL=0
FORCE=0
VOLUMES=0
WORK=
CHILD=
COMPOSE=()
COMPOSE_OPTIONS=()
TEST_PROJECT=
TEST_IMAGE=
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SANDBOX_IMAGE=$(sed -n 's/^image = "\(.*\)"/\1/p' sandbox/image/languages.toml | head -n 1)
export QUORUN_NODE_IMAGE="quorun/node:$VERSION"

say() { printf '==> %3d s  %s\n' "$SECONDS" "$*"; }

die() {
    printf 'deploy.sh: %s\n' "$*" >&2
    exit 1
}

misuse() {
    printf 'deploy.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

have() { command -v "$1" > /dev/null 2>&1; }

at_most() { # A B: A is not a later version than B
    [[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" == "$1" ]]
}

# ---------------------------------------------------------------------------------------------------------------------
# Root, packages
# ---------------------------------------------------------------------------------------------------------------------

can_be_root() { ((EUID == 0)) || { have sudo && sudo -n true 2> /dev/null; }; }

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo -n "$@"
    fi
}

apt_update() {
    [[ ! -e $WORK/apt-updated ]] || return 0
    have apt-get || die "cannot install anything: this machine has no apt-get"
    can_be_root || die "cannot install anything: run as root, or let sudo work without a password"
    logged "$WORK/apt-update.log" as_root apt-get -o DPkg::Lock::Timeout=300 update \
        || die "apt-get update failed; what it said is above"
    : > "$WORK/apt-updated"
}

apt_install() { # PACKAGE...
    apt_update
    say "installing $*"
    logged "$WORK/apt-install.log" as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" \
        || die "apt-get install $* failed; what it said is above"
}

packaged() { apt-cache show "$1" > /dev/null 2>&1; }

# Runs a talkative command and shows what it said only if it fails.
logged() { # LOG COMMAND...
    local log=$1
    shift
    "$@" > "$log" 2>&1 < /dev/null && return
    tail -n 40 "$log" >&2
    return 1
}

# ---------------------------------------------------------------------------------------------------------------------
# The engine
# ---------------------------------------------------------------------------------------------------------------------

engine_answers() { timeout 20 docker version --format '{{.Server.Version}}' > /dev/null 2>&1; }

wait_for_engine() { # SECONDS
    local end=$((SECONDS + $1))
    until engine_answers; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

require_engine() {
    if ! engine_answers; then
        if [[ ${DOCKER_HOST-} ]]; then
            die "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST; start it, or unset DOCKER_HOST to use one on this machine"
        elif [[ -S /var/run/docker.sock && ! -w /var/run/docker.sock ]]; then
            die "this user may not use the Docker engine; run as root, or join the group docker and log in again"
        elif ((INSTALL)); then
            install_engine
        elif have docker && have dockerd; then
            die "the Docker engine is installed but does not answer; start it, or run again with --install-engine to have it started"
        else
            die "no Docker engine on this machine; run again with --install-engine (Debian or Ubuntu, as root), or install Docker"
        fi
    fi
    if ! find_compose; then
        ((INSTALL)) \
            || die "compose is missing; run again with --install-engine (Debian or Ubuntu, as root), or install Docker's compose plugin"
        apt_update
        apt_install "$(compose_package)"
        find_compose || die "compose was installed but does not run"
    fi
    # the classic builder is all that an engine without the buildx plugin offers
    docker buildx version > /dev/null 2>&1 || export DOCKER_BUILDKIT=0
}

find_compose() {
    if docker compose version > /dev/null 2>&1; then
        COMPOSE=(docker compose)
    else
        have docker-compose && COMPOSE=(docker-compose)
    fi
}

compose_package() {
    if packaged docker-compose-v2; then
        echo docker-compose-v2
    else
        echo docker-compose
    fi
}

install_engine() {
    can_be_root || die "cannot install or start a Docker engine: run as root, or let sudo work without a password"
    local packages=()
    if ! have dockerd; then
        apt_update
        packages+=(docker.io)
        # newer releases have the client in a package of its own
        if ! have docker && packaged docker-cli; then
            packages+=(docker-cli)
        fi
        find_compose || packages+=("$(compose_package)")
    fi
    have iptables || packages+=(iptables)
    ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
    # an installation may have started it, in its own time
    if have systemctl && [[ -d /run/systemd/system ]] && wait_for_engine 10; then
        return
    fi
    say "starting the Docker engine"
    # a kernel without nftables still has the older tables
    if ! as_root iptables -t nat -n -L > /dev/null 2>&1 && as_root iptables-legacy -t nat -n -L > /dev/null 2>&1; then
        as_root update-alternatives --set iptables /usr/sbin/iptables-legacy > /dev/null
    fi
    if [[ -d /run/systemd/system ]]; then
        logged "$WORK/engine-start.log" as_root systemctl start docker || true
        wait_for_engine 60 && return
        die "the Docker engine does not start; see: journalctl -u docker"
    fi
    # its script wants a right that a container-like machine may not have; it mounts the control groups in any case
    if [[ -x /etc/init.d/docker ]] && as_root /etc/init.d/docker start > "$WORK/engine-start.log" 2>&1 < /dev/null; then
        wait_for_engine 30 && return
    fi
    local log=/var/log/quorun-dockerd.log
    as_root sh -c "
        mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
        setsid dockerd > $log 2>&1 < /dev/null &
    "
    if ! wait_for_engine 60; then
        as_root tail -n 15 "$log" >&2
        die "the Docker engine does not start; its last words are above, the rest is in $log"
    fi
}

image_exists() { docker image inspect "$1" > /dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------------------------
# The base image
# ---------------------------------------------------------------------------------------------------------------------

prepare_base() {
    image_exists "$BASE" && return
    say "getting the image $BASE"
    if timeout "$PULL_SECONDS" docker pull -q "$BASE" > "$WORK/pull.log" 2>&1; then
        return
    fi
    say "the registry gave none ($(tail -n 1 "$WORK/pull.log")); making it from Debian's packages"
    make_base
}

make_base() {
    local how="needed to make $BASE where no registry is reached"
    if ! have debootstrap; then
        ((INSTALL)) || die "debootstrap is missing, $how; run again with --install-engine, or install debootstrap"
        apt_install debootstrap
    fi
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if [[ ! -e $keyring ]]; then
        ((INSTALL)) || die "debian-archive-keyring is missing, $how; run again with --install-engine, or install it"
        apt_install debian-archive-keyring
    fi
    can_be_root || die "root is $how; run as root, or let sudo work without a password"

    # an older debootstrap does not know the suite by name; all of Debian's later ones are made alike
    local script=/usr/share/debootstrap/scripts/$SUITE
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    local mirror security
    mirror=$(find_archive "$SUITE" Debian http://deb.debian.org/debian) \
        || die "no mirror of Debian with $SUITE is reached: neither one that apt names, nor deb.debian.org"
    local root=$WORK/base
    # the package manager's proxy holds for what is fetched here too
    if ! logged "$WORK/debootstrap.log" as_root env "${PROXIES[@]}" timeout 1200 debootstrap --variant=minbase \
        --include=ca-certificates --keyring="$keyring" "$SUITE" "$root" "$mirror" "$script"; then
        die "debootstrap failed; what it said is above"
    fi

    {
        echo "deb $mirror $SUITE main"
        if find_archive "$SUITE-updates" Debian "$mirror" > /dev/null; then
            echo "deb $mirror $SUITE-updates main"
        fi
        if security=$(find_archive "$SUITE-security" Debian-Security http://deb.debian.org/debian-security); then
            echo "deb $security $SUITE-security main"
        fi
    } > "$WORK/sources.list"
    as_root cp "$WORK/sources.list" "$root/etc/apt/sources.list"
    # a mirror that stands still is as much out of date inside the image as outside
    apt-config dump 2> /dev/null | grep -E '^Acquire::Check-(Valid-Until|Date) ' > "$WORK/apt.conf" || true
    as_root cp "$WORK/apt.conf" "$root/etc/apt/apt.conf.d/90host"
    as_root find "$root"/usr/share/{man,info,locale,lintian} "$root"/var/{cache/apt/archives,lib/apt/lists} \
        "$root"/var/log -not -type d -delete
    as_root find "$root/usr/share/doc" -not -type d -not -name copyright -delete
    as_root tar -C "$root" --numeric-owner --one-file-system -c . \
        | docker import --change 'CMD ["bash"]' - "$BASE" > /dev/null \
        || die "the engine did not take the image $BASE"
    as_root rm -rf --one-file-system "$root"
}

# Prints the first archive that has the suite under Debian's own name: those that apt uses, then the given one.
find_archive() { # SUITE LABEL FALLBACK
    local archives archive
    # shellcheck disable=SC2016
    archives=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2> /dev/null | sort -u) || true
    for archive in $archives "$3"; do
        [[ $archive == http://* || $archive == https://* ]] || continue
        archive=${archive%/}
        rm -f "$WORK/InRelease"
        if download "$archive/dists/$1/InRelease" "$WORK/InRelease" \
            && grep -q "^Label: $2\$" "$WORK/InRelease" && grep -q '^Origin: Debian$' "$WORK/InRelease"; then
            printf '%s\n' "$archive"
            return
        fi
    done
    return 1
}

download() { # URL FILE
    local helper=/usr/lib/apt/apt-helper
    if [[ -x $helper ]]; then
        "$helper" -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 \
            download-file "$1" "$2"
    else
        wget -q -T 20 -t 2 -O "$2" "$1"
    fi > /dev/null 2>&1
}

# What a build or a bootstrap needs to get out: the usual variables, and apt's own proxy where they are not set.
PROXIES=()
find_proxies() {
    local name value
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [[ -z ${!name-} ]] || PROXIES+=("$name=${!name}")
    done
    if [[ -z ${http_proxy-}${HTTP_PROXY-} ]] && have apt-config; then
        value=$(apt-config shell p Acquire::http::Proxy 2> /dev/null | sed -n "s/^p='\(.*\)'\$/\1/p")
        [[ -z $value || $value == DIRECT ]] || PROXIES+=("http_proxy=$value")
    fi
}

# ---------------------------------------------------------------------------------------------------------------------
# The images and the program
# ---------------------------------------------------------------------------------------------------------------------

# Builds an image unless one from the same inputs is there.
build_image() { # NAME CONTEXT NOTE
    local name=$1 context=$2 note=$3 inputs proxy former options=()
    inputs=$({
        docker image inspect --format '{{.Id}}' "$BASE"
        cd "$context"
        find . -type f -not -name languages.toml -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c 1-32)
    if ((!FORCE)) && [[ "$(label_of "$name")" == "$inputs" ]]; then
        say "the image $name is up to date"
        return
    fi
    say "building the image $name$note"
    ((!FORCE)) || options+=(--no-cache)
    for proxy in "${PROXIES[@]}"; do
        options+=(--build-arg "$proxy")
    done
    former=$(docker image inspect --format '{{.Id}}' "$name" 2> /dev/null) || true
    # the host's network: a proxy or a name server may be reachable from nowhere else
    logged "$WORK/build.log" docker build --network host --build-arg "BASE=$BASE" --label "quorun.inputs=$inputs" \
        "${options[@]}" -t "$name" "$context" \
        || die "the image $name could not be built; what the builder said is above"
    # the one that this replaces, unless something still runs from it
    [[ -z $former ]] || docker rmi "$former" > /dev/null 2>&1 || true
}

label_of() { docker image inspect --format '{{index .Config.Labels "quorun.inputs"}}' "$1" 2> /dev/null || true; }

prepare_sandbox() { build_image "$SANDBOX_IMAGE" sandbox/image ", with twelve languages: this takes some minutes"; }

find_cargo() {
    have cargo || PATH="$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin"
    have cargo
}

# Empty if the host can build a program that runs in the base image, else the reason why not.
why_not_on_host() {
    local wanted rust glibc
    [[ "$(uname -s)" == Linux ]] || { echo "this is not Linux"; return; }
    find_cargo || { echo "cargo is missing"; return; }
    have cc || { echo "a C compiler (cc) is missing"; return; }
    have make || { echo "make is missing"; return; }
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    rust=$(rustc --version 2> /dev/null | cut -d ' ' -f 2) || true
    at_most "$wanted" "${rust:-0}" || { echo "Rust $wanted is needed, and rustc is ${rust:-missing}"; return; }
    glibc=$(getconf GNU_LIBC_VERSION 2> /dev/null | cut -d ' ' -f 2) || true
    [[ $glibc ]] || { echo "the C library is not glibc"; return; }
    at_most "$glibc" "$BASE_GLIBC" || echo "glibc $glibc is newer than the $BASE_GLIBC of the image"
}

# Builds the program and notes where it is.
build_program() {
    local reason container
    reason=$(why_not_on_host)
    if [[ -z $reason ]]; then
        find_cargo
        say "building the program with cargo"
        cargo build --release --locked -p quorun-server || die "cargo could not build the program"
        cargo metadata --format-version 1 --no-deps --locked \
            | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1\/release\/quorun/p' > "$WORK/program"
        return
    fi
    say "building the program in a container ($reason)"
    if ! image_exists "$RUST_IMAGE"; then
        timeout 900 docker pull -q "$RUST_IMAGE" > "$WORK/pull.log" 2>&1 \
            || die "$reason, and the image $RUST_IMAGE cannot be had: install Rust (https://rustup.rs) with a C compiler and make, or give the engine a registry"
    fi
    local proxy options=()
    for proxy in "${PROXIES[@]}"; do
        options+=(--build-arg "$proxy")
    done
    docker build --network host "${options[@]}" --build-arg "RUST=$RUST_IMAGE" -f node/Dockerfile.build \
        -t "quorun/build:$VERSION" . || die "the program could not be built in a container"
    container=$(docker create "quorun/build:$VERSION")
    docker cp "$container:/quorun" "$WORK/quorun" > /dev/null
    docker rm "$container" > /dev/null
    echo "$WORK/quorun" > "$WORK/program"
}

prepare_node() {
    mkdir -p "$WORK/node"
    cp node/Dockerfile "$WORK/node/Dockerfile"
    cp "$(cat "$WORK/program")" "$WORK/node/quorun"
    build_image "$QUORUN_NODE_IMAGE" "$WORK/node" ""
}

# ---------------------------------------------------------------------------------------------------------------------
# The cluster
# ---------------------------------------------------------------------------------------------------------------------

# A setting as compose sees it: from the environment, or else from the file .env.
setting() { # NAME
    local value=${!1-} line
    if [[ ! -v $1 && -f .env ]]; then
        while IFS= read -r line || [[ $line ]]; do
            line=${line%$'\r'}
            [[ $line == "$1="* ]] || continue
            value=${line#*=}
            if [[ $value == \"*\" || $value == \'*\' ]]; then
                value=${value:1:-1}
            fi
        done < .env
    fi
    printf '%s\n' "$value"
}

# What the nodes are told to read has to be where they will find it; compose would make an empty folder, or a volume.
check_files() {
    local folder
    folder=$(setting QUORUN_FILES)
    [[ $folder ]] || return 0
    [[ $folder == /* || $folder == ./* || $folder == ../* ]] \
        || die "QUORUN_FILES is \"$folder\"; a folder of this machine begins with / or ./"
    [[ -d $folder ]] || die "QUORUN_FILES is \"$folder\", and there is no such folder"
}

# The token that jobs are posted with, if one is named.
TOKEN=
find_token() {
    local file
    TOKEN=$(setting QUORUN_TOKEN)
    [[ -z $TOKEN ]] || return 0
    file=$(setting QUORUN_TOKEN_FILE)
    [[ $file ]] || return 0
    [[ -r $file ]] || die "QUORUN_TOKEN_FILE is \"$file\", which cannot be read"
    read -r TOKEN < "$file" || true
}

compose() { "${COMPOSE[@]}" "${COMPOSE_OPTIONS[@]}" "$@"; }

# One HTTP exchange with a node: the status on the first line, then the body. bash is enough, curl may be missing. A token
# is in AUTHORIZATION: the environment of a process is its user's alone, its arguments are not.
http() { # SECONDS METHOD PORT PATH [BODY]
    # shellcheck disable=SC2016
    timeout "$1" bash -c '
        exec 3<> "/dev/tcp/127.0.0.1/$2" || exit 1
        token=${AUTHORIZATION:+"Authorization: Bearer $AUTHORIZATION"$'\''\r\n'\''}
        printf "%s %s HTTP/1.0\r\nHost: 127.0.0.1:%s\r\n%sContent-Length: %s\r\n\r\n%s" "$1" "$3" "$2" "$token" "${#4}" "$4" >&3
        read -r _ status _ <&3 || exit 1
        while read -r line <&3 && [[ ${line%?} ]]; do :; done
        printf "%s\n" "$status"
        cat <&3
    ' http "$2" "$3" "$4" "${5-}" 2> /dev/null
}

port_of() { # SERVICE
    local address
    address=$(compose port "$1" 8080 2> /dev/null) || return 1
    printf '%s\n' "${address##*:}"
}

start_cluster() {
    say "starting three nodes"
    if ! compose up -d --remove-orphans 2>&1 | tee "$WORK/up.log"; then
        if grep -q -e 'already allocated' -e 'already in use' "$WORK/up.log"; then
            die "a port of the nodes is taken by something else; set QUORUN_HTTP_PORT_1, _2, _3 to free ones"
        fi
        die "compose could not start the nodes; what it said is above"
    fi
    local end=$((SECONDS + READY_SECONDS)) node port answer missing
    while :; do
        missing=
        for node in node1 node2 node3; do
            port=$(port_of "$node") && answer=$(http 5 GET "$port" /readyz) && [[ $answer == 200* ]] && continue
            missing="$missing $node"
        done
        [[ $missing ]] || return 0
        if ((SECONDS >= end)); then
            compose ps >&2 || true
            compose logs --tail=30 >&2 || true
            die "not ready after $READY_SECONDS s:$missing; the logs are above"
        fi
        sleep 0.5
    done
}

first_job() { # SERVICE
    local port answer='' end=$((SECONDS + 60))
    port=$(port_of "$1") || die "$1 has no port"
    while ((SECONDS < end)); do
        answer=$(AUTHORIZATION=$TOKEN http 60 POST "$port" /lang/python "$PYTHON_JOB") || true
        if [[ $answer == $'200\n45' ]]; then
            say "$PYTHON_JOB, posted to $1: 45"
            return
        fi
        if [[ $answer == 401* && -z $TOKEN ]]; then
            say "no first job: the nodes want a token, and neither QUORUN_TOKEN nor QUORUN_TOKEN_FILE names one"
            return
        fi
        # a node may be busy just after its start; anything else will not get better
        [[ -z $answer || $answer == 429* || $answer == 503* ]] || break
        sleep 1
    done
    compose logs --tail=30 >&2 || true
    die "the first job, posted to $1 on port $port, should give 45 and gave: ${answer:-nothing}"
}

# The ids of the clusters whose nodes are, or were, in this project's containers; the sandboxes carry them.
cluster_ids() {
    local container
    for container in $(compose ps -a -q 2> /dev/null); do
        docker cp "$container:/data/identity.json" - 2> /dev/null | tar -xO 2> /dev/null \
            | sed -n 's/.*"cluster": *"\([^"]*\)".*/\1/p' || true
    done | sort -u
}

sandboxes_of() { docker ps -a -q --filter "label=quorun.cluster=$1"; }

# The sandboxes' own program lies in a volume that all clusters of one version share; the engine keeps it while it is used.
remove_warden() {
    docker volume ls -q --filter name=quorun-warden- | xargs -r -n 1 docker volume rm > /dev/null 2>&1 || true
}

stop_cluster() { # [--volumes]
    local id ids
    ids=$(cluster_ids)
    compose down --remove-orphans "$@" || die "compose could not remove the nodes"
    for id in $ids; do
        # -v: also what an image's own VOLUME lines have made; one that has gone by itself meanwhile is no failure
        sandboxes_of "$id" | xargs -r docker rm -f -v > /dev/null 2>&1 || true
    done
    remove_warden
}

# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------

up() {
    check_files
    find_token
    require_engine
    prepare_base
    build_program
    prepare_sandbox
    prepare_node
    start_cluster
    first_job node1
    local node port ports=() name header=
    for node in node1 node2 node3; do
        ports+=("$(port_of "$node")")
    done
    if [[ $(http 10 GET "${ports[0]}" /v1/languages) == 401* ]]; then
        # shellcheck disable=SC2016
        header='-H "Authorization: Bearer $QUORUN_TOKEN" '
    fi
    name=$(docker inspect --format '{{.Name}}' "$(compose ps -q node2)")
    cat <<END

Quorun is up: three nodes, one cluster, after $SECONDS s.

    node1   http://127.0.0.1:${ports[0]}
    node2   http://127.0.0.1:${ports[1]}
    node3   http://127.0.0.1:${ports[2]}

Next, for example:

    curl ${header}--data-binary 'puts 6 * 7' http://127.0.0.1:${ports[1]}/lang/ruby
    curl ${header}http://127.0.0.1:${ports[2]}/v1/cluster
    docker kill ${name#/}     and later     docker start ${name#/}
    ./deploy.sh down
END
}

down() {
    require_engine
    local options=()
    ((!VOLUMES)) || options+=(--volumes)
    stop_cluster "${options[@]}"
    if ((VOLUMES)); then
        say "the nodes, their sandboxes and their data are gone"
    else
        say "the nodes and their sandboxes are gone; their data is kept for the next ./deploy.sh"
    fi
}

PASSED=0
FAILED=0
STEP_OK=1
SUMMARY=()

# Runs one step of the tests, counts it and says in STEP_OK how it went. Not by its return code: bash does not stop at
# a failed command within anything whose return code is looked at. The step is a job of its own, so that the end of
# this script ends it at once.
step() { # NAME COMMAND...
    local name=$1 start=$SECONDS code=0 result=passed
    STEP_OK=1
    shift
    printf '\n==> %s\n' "$name"
    set -m
    (
        set -e
        "$@"
    ) < /dev/null &
    CHILD=$!
    set +m
    wait "$CHILD" || code=$?
    CHILD=
    if ((code == 0)); then
        PASSED=$((PASSED + 1))
    else
        FAILED=$((FAILED + 1))
        STEP_OK=0
        result=FAILED
    fi
    SUMMARY+=("$(printf '%-6s %5d s   %s' "$result" $((SECONDS - start)) "$name")")
}

skipped() { # NAME
    FAILED=$((FAILED + 1))
    SUMMARY+=("$(printf '%-6s %5s     %s' FAILED - "$1 (not run: it needs a step that failed)")")
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        # taken, if something answers
        (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
    done
    echo "$port"
}

first_jobs() {
    local node
    for node in node1 node2 node3; do
        first_job "$node"
    done
}

stop_test_cluster() {
    local id ids left
    ids=$(cluster_ids)
    stop_cluster --volumes
    left=$(
        docker ps -a -q --filter "label=com.docker.compose.project=$TEST_PROJECT"
        docker volume ls -q --filter "label=com.docker.compose.project=$TEST_PROJECT"
        docker network ls -q --filter "label=com.docker.compose.project=$TEST_PROJECT"
        for id in $ids; do
            sandboxes_of "$id"
        done
    )
    [[ -z $left ]] || die "the test cluster left something behind: $left"
}

# What some tests need beside the tree: a Python that can make an environment. They put their packages into it themselves,
# below target/.
prepare_python() {
    if have python3 && python3 -c 'import ensurepip, venv' 2> /dev/null; then
        return
    fi
    ((INSTALL)) \
        || die "python3 with venv is missing, and the tests need it; run again with --install-engine (Debian or Ubuntu, as root), or install python3-venv"
    apt_install python3-venv
    python3 -c 'import ensurepip, venv'
}

# Node.js with npm, for the client that is generated in TypeScript.
prepare_npm() {
    if have node && have npm; then
        return
    fi
    ((INSTALL)) \
        || die "node and npm are missing, and the tests need them; run again with --install-engine (Debian or Ubuntu, as root), or install nodejs and npm"
    apt_install nodejs npm
}

run_tests() {
    find_cargo || die "cargo is missing, and the tests need it: install Rust (https://rustup.rs)"
    have cc || die "a C compiler (cc) is missing, and the tests need it: install gcc"
    # the memory allocator is built with make; the examples of the documentation are run as they stand there
    local tool missing=()
    for tool in make curl jq; do
        have "$tool" || missing+=("$tool")
    done
    if ((${#missing[@]} > 0)); then
        ((INSTALL)) || die "missing: ${missing[*]}, which the tests need; install it, or run again with --install-engine"
        apt_install "${missing[@]}"
    fi
    require_engine
    local image=0 program=0
    step "base image" prepare_base
    if ((STEP_OK)); then
        step "sandbox image" prepare_sandbox
        image=$STEP_OK
    else
        skipped "sandbox image"
    fi
    step "formatting" cargo fmt --all --check
    step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
    step "build" cargo build --workspace --locked
    step "python" prepare_python
    step "npm" prepare_npm
    # where python3 is a script that looks for an interpreter, each of many thousand jobs would pay for looking
    local interpreters
    interpreters=$(python3 -c 'import os, sys; print(os.path.dirname(os.path.realpath(sys.executable)))' 2> /dev/null || true)
    # with these, a test that needs the engine, or packages of Python or npm, fails where it would otherwise be skipped
    step "tests" env PATH="${interpreters:+$interpreters:}$PATH" QUORUN_REQUIRE_ENGINE=1 QUORUN_REQUIRE_PYTHON=1 QUORUN_REQUIRE_NPM=1 cargo test --workspace --locked --no-fail-fast
    step "program" build_program
    program=$STEP_OK

    # settings are for the cluster that the user runs; what says where the engine is holds for this one too
    local socket
    socket=$(setting QUORUN_DOCKER_SOCKET)
    unset "${!QUORUN_@}" COMPOSE_PROJECT_NAME
    [[ -z $socket ]] || export QUORUN_DOCKER_SOCKET=$socket
    : > "$WORK/empty.env"
    # names, ports, volumes and an image of its own: a cluster that the user runs is not touched
    TEST_IMAGE=quorun/node:test-$$
    export QUORUN_NODE_IMAGE=$TEST_IMAGE QUORUN_CLUSTER=quorun-test-$$
    QUORUN_HTTP_PORT_1=$(free_port) QUORUN_HTTP_PORT_2=$(free_port) QUORUN_HTTP_PORT_3=$(free_port)
    export QUORUN_HTTP_PORT_1 QUORUN_HTTP_PORT_2 QUORUN_HTTP_PORT_3
    unset COMPOSE_FILE
    if ((image && program)); then
        step "node image" prepare_node
    else
        STEP_OK=0
        skipped "node image"
    fi
    if ((STEP_OK)); then
        TEST_PROJECT=quorun-test-$$
        COMPOSE_OPTIONS=(--env-file "$WORK/empty.env" -p "$TEST_PROJECT" -f docker-compose.yaml)
        step "three nodes up" start_cluster
        if ((STEP_OK)); then
            step "a first job on each node" first_jobs
        else
            skipped "a first job on each node"
        fi
        step "three nodes down" stop_test_cluster
        ((!STEP_OK)) || TEST_PROJECT=
    else
        skipped "three nodes up, a first job on each, down"
    fi

    printf '\n'
    printf '%s\n' "${SUMMARY[@]}"
    printf '\n%d s in all\n' "$SECONDS"
    RESULT="$PASSED passed, $FAILED failed"
}

RESULT=

clean_up() {
    local code=$? mount
    trap - EXIT INT TERM HUP
    set +e
    if [[ $CHILD ]]; then
        kill -TERM -- "-$CHILD" 2> /dev/null
        (sleep 15 && kill -KILL -- "-$CHILD") 2> /dev/null &
        wait "$CHILD" 2> /dev/null
        kill "$!" 2> /dev/null
        RESULT="$PASSED passed, $((FAILED + 1)) failed"
    fi
    if [[ $TEST_PROJECT ]]; then
        (stop_cluster --volumes) > /dev/null 2>&1
    fi
    [[ -z $TEST_IMAGE ]] || docker rmi -f "$TEST_IMAGE" > /dev/null 2>&1
    if [[ $WORK ]]; then
        # an interrupted bootstrap leaves mounts
        awk -v under="$WORK/" 'index($2, under) == 1 { print $2 }' /proc/mounts 2> /dev/null | sort -r \
            | while read -r mount; do as_root umount -l "$mount"; done
        rm -rf --one-file-system "$WORK" 2> /dev/null || as_root rm -rf --one-file-system "$WORK"
    fi
    # a run of the tests ends with this line, whatever cleaning up had to say
    [[ -z $RESULT ]] || printf '%s\n' "$RESULT"
    exit "$code"
}

main() {
    local command='' argument
    for argument in "$@"; do
        case $argument in
            up | rebuild | down | test)
                [[ -z $command ]] || misuse "one command at a time: $command or $argument"
                command=$argument
                ;;
            --install-engine) INSTALL=1 ;;
            --volumes) VOLUMES=1 ;;
            -h | --help | help)
                usage
                return
                ;;
            *) misuse "\"$argument\" is neither a command nor an option" ;;
        esac
    done
    command=${command:-up}
    [[ $command == down ]] || ((!VOLUMES)) || misuse "--volumes goes with down only"
    [[ $command != down ]] || ((!INSTALL)) || misuse "--install-engine does not go with down"

    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash 4.4 or later is needed, and this is $BASH_VERSION"

    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/quorun-deploy.XXXXXX")
    find_proxies
    case $command in
        up) up ;;
        rebuild)
            FORCE=1
            up
            ;;
        down) down ;;
        test)
            run_tests
            ((FAILED == 0)) || exit 1
            ;;
    esac
}

main "$@"
