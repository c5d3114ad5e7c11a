# shellcheck shell=sh
# Functions shared by scripts/demo, scripts/test, scripts/chroot-test and examples/lab/setup.sh:
# they find what a build lacks and install it. Sourced from the root of the checkout.

dry_run=      # not empty: list what would be done, and do nothing
install_rust= # not empty: install Rust too
lists=        # not empty: apt's package lists are fresh
packages=     # Debian packages to install
rust=         # state of the Rust toolchain: found, old, missing or "no toolchain"

# What QEMU's guest lab runs. The kernels and programs of its guests are not installed: the lab
# downloads their packages into its cache and unpacks them there.
lab_packages="qemu-system-x86 e2fsprogs xz-utils zstd squashfs-tools xfsprogs"

step_number=0
step() {
    step_number=$((step_number + 1))
    printf '\n[%s/%s] %s\n' "$step_number" "${steps:?}" "$*"
}

finding() { printf '  %-20s %s\n' "$1" "$2"; }

die() {
    printf '\n%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Prints a command and runs it; in a dry run only prints it.
run() {
    printf '  $ %s\n' "$*"
    [ -n "$dry_run" ] || "$@"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# A compiler without libc6-dev is found in the path and still cannot link, so one program is linked.
compiler_works() {
    command -v cc >/dev/null || return 1
    program=$(mktemp) || return 1
    works=0
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        cc -x c -o "$program" - 2>/dev/null || works=1
    rm -f "$program"
    return "$works"
}

# Looks where the clang-sys crate looks. libclang-cpp is another library.
libclang_present() {
    for file in "${LIBCLANG_PATH:-/nonexistent}" "${LIBCLANG_PATH:-/nonexistent}"/libclang*.so* \
        /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*-linux-gnu/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib/libclang*.so* /usr/local/lib/libclang*.so*; do
        case $file in
        *libclang-cpp*) ;;
        *) if [ -e "$file" ]; then return 0; fi ;;
        esac
    done
    return 1
}

oldest_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

# Sets $rust. What rustup has just installed is in the path of new logins only, thus the path here.
look_for_rust() {
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    export PATH
    oldest=$(oldest_rust)
    if version=$(cargo --version 2>/dev/null); then
        minor=$(printf '%s\n' "$version" | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
        if [ "${minor:-0}" -ge "${oldest#1.}" ]; then rust=found; else rust=old; fi
    elif command -v rustup >/dev/null; then
        rust="no toolchain"
    else
        rust=missing
    fi
    case $rust in
    found) finding "Rust $oldest or later" "found: $version" ;;
    old) finding "Rust $oldest or later" "too old: $version" ;;
    "no toolchain") finding "Rust $oldest or later" "rustup is here, without a toolchain" ;;
    missing) finding "Rust $oldest or later" "missing" ;;
    esac
}

# Reports what `cargo build` lacks; adds to $packages.
look_for_build_tools() {
    if compiler_works; then
        finding "C compiler" "found: $(command -v cc)"
    else
        finding "C compiler" "missing: Debian packages gcc, libc6-dev"
        packages="$packages gcc libc6-dev"
    fi
    # Bindings generated at build time need libclang. The headers that belong to clang
    # (libclang-common-*-dev) are not needed: the only headers read are the kernel's.
    if ! grep -q '^name = "clang-sys"' Cargo.lock; then
        finding libclang "not needed"
    elif libclang_present; then
        finding libclang "found"
    else
        finding libclang "missing: Debian package libclang1"
        packages="$packages libclang1"
    fi
}

# Reports what the guest lab lacks; adds to $packages.
look_for_lab() {
    lacking=
    for package in $lab_packages; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || lacking="$lacking $package"
    done
    if [ -z "$lacking" ]; then
        finding "guest lab" "found"
    else
        finding "guest lab" "missing: Debian packages$lacking"
        packages="$packages$lacking"
    fi
}

# Ends the script if Rust is lacking and may not be installed. Called before anything is installed.
need_rust() {
    if [ "$rust" = found ] || [ -n "$install_rust" ] || [ -n "$dry_run" ]; then return 0; fi
    oldest=$(oldest_rust)
    case $rust in
    old)
        if command -v rustup >/dev/null; then
            die "Rust is too old. Run:
    rustup update stable && rustup default stable"
        fi
        die "Rust is too old, and no package of this system may be newer. Kaleidoscope needs Rust
$oldest or later, from rustup. Either run

    $0 --install-rust

or follow https://rustup.rs; then run $0 again."
        ;;
    "no toolchain")
        die "rustup has no toolchain. Run:
    rustup default stable
or  $0 --install-rust"
        ;;
    missing)
        die "Rust is missing. Kaleidoscope needs Rust $oldest or later; Debian's rustc is older
(12: 1.63, 13: 1.85), so that it must come from rustup. Either run

    $0 --install-rust

(installs Debian's package rustup where there is one, otherwise downloads rustup-init, compares its
checksum and runs it for this user only), or follow https://rustup.rs; then run $0 again."
        ;;
    esac
}

# Runs apt-get as root, with its output in a file; shows the file's end if apt-get fails.
apt_get() {
    printf '  $ %sapt-get %s\n' "$(if [ "$(id -u)" != 0 ]; then echo 'sudo '; fi)" "$*"
    [ -z "$dry_run" ] || return 0
    mkdir -p target
    # Another apt-get, such as the daily one, holds the lock for minutes at most.
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet \
        -o DPkg::Lock::Timeout=300 "$@" >>target/setup.log 2>&1; then
        tail -n 20 target/setup.log >&2
        die "apt-get failed (everything it said: target/setup.log)"
    fi
}

# Ends the script if apt-get cannot be run as root.
need_root() {
    if ! command -v apt-get >/dev/null; then
        die "no apt-get here: install what these Debian packages hold, then run $0 again:
   $*"
    fi
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null && [ -z "$dry_run" ]; then
        die "installing packages needs root, and there is no sudo. As root, run:

    apt-get update && apt-get install --no-install-recommends$*

then run $0 again."
    fi
}

# Fetches apt's package lists, once.
fetch_lists() {
    [ -z "$lists" ] || return 0
    apt_get update
    lists=fetched
}

# Installs $packages. Package lists are fetched only when something is to be installed.
install_packages() {
    if [ -z "$packages" ]; then
        echo "  no packages to install"
        return 0
    fi
    need_root "$packages"
    fetch_lists
    # shellcheck disable=SC2086 # a list of words
    apt_get install --yes --no-install-recommends $packages
    packages=
}

# Installs a Rust toolchain: with Debian's rustup where there is one (Debian 13 and later).
set_up_rust() {
    if [ "$rust" = found ] || [ -z "$install_rust" ]; then return 0; fi
    if ! command -v rustup >/dev/null; then
        # Without lists, as in a container image, apt knows no package.
        [ ! -d /var/lib/apt ] || [ "$(id -u)" != 0 ] || fetch_lists
        if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            packages=" rustup"
            install_packages
        else
            download_rustup
        fi
    fi
    run rustup toolchain install stable --profile minimal
    run rustup default stable
}

# Runs the official installer, for this user only, without changing the user's shell profile.
download_rustup() {
    if ! command -v curl >/dev/null; then
        packages=" curl ca-certificates"
        install_packages
    fi
    server=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup}
    url=$server/dist/$(uname -m)-unknown-linux-gnu/rustup-init
    run mkdir -p target/rustup
    run curl --fail --silent --show-error --location --output target/rustup/rustup-init "$url"
    run curl --fail --silent --show-error --location --output target/rustup/checksum "$url.sha256"
    if [ -z "$dry_run" ]; then
        # The file names rustup-init by the path it had where it was built.
        sum=$(cut -d ' ' -f 1 target/rustup/checksum)
        echo "$sum  target/rustup/rustup-init" | sha256sum --check --quiet ||
            die "the checksum of rustup-init is wrong"
        chmod +x target/rustup/rustup-init
    fi
    run target/rustup/rustup-init -y --quiet --no-modify-path --profile minimal
}
