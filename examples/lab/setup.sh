#!/bin/sh
# Installs on Debian what `kaleidoscope lab` needs. Safe to run again.
# With the argument `compiler`, only what `cargo build` needs: a C compiler, which Rust links with.
#
# Kernels and the guests' programs are not installed: the lab downloads their packages (the
# statically linked busybox among them) into its cache and unpacks them there.
set -eu

packages="qemu-system-x86 e2fsprogs xz-utils zstd squashfs-tools xfsprogs"
if [ "${1:-}" = compiler ]; then
    packages="gcc libc6-dev"
    if command -v cc >/dev/null; then exit 0; fi
fi

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo

# The lab asks apt for packages too, so that its lists must be present in any case.
$as_root apt-get update
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends $missing
fi
echo "the guest lab has all it needs; try: kaleidoscope lab run -o target/guest"
