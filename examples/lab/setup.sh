#!/bin/sh
# Installs on Debian what `kaleidoscope lab` needs. Safe to run again.
# With the argument `compiler`, only what `cargo build` needs.
#
# Kernels and the guests' programs are not installed: the lab downloads their packages (the
# statically linked busybox among them) into its cache and unpacks them there.
set -eu
cd "$(dirname "$0")/../.."
. scripts/lib.sh

if [ "${1:-}" = compiler ]; then
    look_for_build_tools
    install_packages
    exit 0
fi

look_for_lab
# The lab asks apt for packages too, so apt's lists must be present even if nothing is missing.
[ -n "$packages" ] || fetch_lists
install_packages
# Disks of VMs that are cloned. Later, because the packages above remove one of another version.
if [ -z "$dry_run" ] && ! command -v qemu-img >/dev/null; then
    packages=qemu-utils
    install_packages
fi
echo "the guest lab has all it needs; try: kaleidoscope lab run target/guest"
